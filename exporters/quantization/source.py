"""A graph of a bundle as quantization takes it: read from its file, never traced again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from flash_export.errors import BundleError
from flash_export.exporters.quantization.joining import join_products
from flash_export.exporters.quantization.nodes import read_constant
from flash_export.exporters.quantization.products import list_products
from flash_export.exporters.quantization.rewrite import quantize_graph
from flash_export.exporters.serialization import SplitModels, write_models

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Float
    from numpy import ndarray

    from flash_export.bundle.manifest import GraphSpec
    from flash_export.exporters.quantization.recipe import QuantizationRecipe

_FILE = "model.onnx"


@dataclass(frozen=True)
class SourceProduct:
    """A product that can be quantized.

    Attributes:
        name: Such as ``layers.3.out``.
        input_name: Name of the value that is multiplied with the weight.
        weight: The weight, ``(k, n)``.
    """

    name: str
    input_name: str
    weight: Float[ndarray, "k n"]


@dataclass(frozen=True)
class SourceGraph:
    """A graph whose weights are in memory once, or in its file, however many variants are made of it.

    Attributes:
        graph: The contract of what is made of it.
        skeleton: The graph without large weights.
        weights: Those, by name.
        products: What can be quantized, in the order of the graph.
    """

    graph: GraphSpec
    skeleton: onnx.ModelProto = field(repr=False)
    weights: dict[str, ir.TensorProtocol] = field(repr=False)
    products: tuple[SourceProduct, ...]

    @classmethod
    def read(cls, path: Path, graph: GraphSpec, exact: SourceGraph | None = None) -> SourceGraph:
        """Read a graph, with one product where a layer has two of the same input.

        Args:
            path: Its file.
            graph: The contract of what is to be made of it. Its opset may be a later one, which gives the operators
                further types and changes nothing else.
            exact: The same model in fp32, where the file is half: what is quantized is rounded from its weights.

        Raises:
            BundleError: Its weights are in a file that is a link.
        """
        try:
            # Files name the shapes of inputs and outputs alone.
            apart = _split(ir.load(path))
            inferred = onnx.shape_inference.infer_shapes(apart.skeletons[_FILE])
            model = _put_together(inferred, apart.weights)
            model.opset_imports[""] = graph.opset
            join_products(model)
        except ValueError as error:  # weights in a file that has another name too, which onnx_ir does not read
            raise BundleError(f"{path} cannot be read ({error}); make a copy of the bundle, without links") from error
        weights = {} if exact is None else {product.name: product.weight for product in exact.products}
        products = tuple(
            SourceProduct(one.name, str(one.input.name), weights[one.name] if exact else read_constant(one.weight))
            for one in list_products(model)
        )
        joined = _split(model)
        return cls(graph, joined.skeletons[_FILE], joined.weights, products)

    def quantize(self, recipe: QuantizationRecipe | None) -> ir.Model:
        """Return a copy, quantized by a recipe."""
        model = _put_together(self.skeleton, self.weights)
        if recipe is not None:
            quantize_graph(model, recipe, {product.name: product.weight for product in self.products})
        return model

    def write(self, folder: Path, recipe: QuantizationRecipe | None = None) -> Path:
        """Write a copy, quantized by a recipe, and return its file."""
        models = _split(self.quantize(recipe))
        del models.skeletons[_FILE].graph.value_info[:]
        write_models(models, folder)
        return folder / _FILE


def _split(model: ir.Model) -> SplitModels:
    models = SplitModels(f"{_FILE}.data")
    models.add(_FILE, model)
    return models


def _put_together(skeleton: onnx.ModelProto, weights: dict[str, ir.TensorProtocol]) -> ir.Model:
    model = ir.from_proto(skeleton)
    for name, value in model.graph.initializers.items():
        if name in weights:
            value.const_value = weights[name]
    return model
