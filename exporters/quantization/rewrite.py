"""Rewriting a traced graph so that its products with weights are computed, or its weights kept, in few bits."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from flash_export.exporters.quantization.nodes import (
    add_constant,
    get_input,
    insert_nodes,
    is_constant,
    read_constant,
    replace_value,
)
from flash_export.exporters.quantization.products import list_products
from flash_export.exporters.quantization.tables import halve_embedding, shorten_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jaxtyping import Float

    from flash_export.exporters.quantization.numbers import NumberFormat, QuantizedWeight
    from flash_export.exporters.quantization.products import Product
    from flash_export.exporters.quantization.recipe import ProductRecipe, QuantizationRecipe

    SharedValues = dict[tuple[ir.Value, str], ir.Value]  # by what they are made of, and how


def quantize_graph(
    model: ir.Model, recipe: QuantizationRecipe, weights: Mapping[str, Float[np.ndarray, "k n"]] | None = None
) -> None:
    """Rewrite a graph in place; products that the recipe does not name stay as they are.

    Args:
        model: The graph.
        recipe: What is quantized.
        weights: Weights of products in fp32, by name, where those of the graph are half.
    """
    shared: SharedValues = {}
    for product in list(list_products(model)):
        if (wanted := recipe.products.get(product.name)) is not None:
            weight = None if weights is None else weights[product.name]
            wanted.scheme.rewrite(Place(model.graph, product, shared, weight), wanted)
    halve_embedding(model.graph)
    shorten_tables(model.graph)
    used = {value.name for node in model.graph for value in node.inputs if value is not None}
    for name in [name for name in model.graph.initializers if name not in used]:
        del model.graph.initializers[name]


class Place:
    """A product ``activation weight`` that is to be rewritten, and the means to put nodes before it."""

    def __init__(
        self,
        graph: ir.Graph,
        product: Product,
        shared: SharedValues,
        weight: Float[np.ndarray, "k n"] | None = None,
    ) -> None:
        """Take a product of a graph as it was traced, and what products before it made of their activations.

        Schemes compute in fp32: where the product is half, its activation is widened, and what it gives is narrowed.
        """
        self._graph, self._node, self._scope = graph, product.node, f"{product.name}.quantized"
        self._shared, self._counts = shared, Counter[str]()
        self._dtype = product.weight.dtype or ir.DataType.FLOAT
        self.activation, self._weight_name = product.input, product.weight.name
        if self._dtype != ir.DataType.FLOAT:
            x = self.activation
            self.activation = self.share(x, "wide", lambda: self.insert("Cast", [x], to=int(ir.DataType.FLOAT)))
        self.weight: Float[np.ndarray, "k n"] = read_constant(product.weight) if weight is None else weight

    @property
    def output(self) -> ir.Value:
        """What the product gives."""
        return self._node.outputs[0]

    def add(self, suffix: str, array: np.ndarray | np.generic) -> ir.Value:
        """Add a constant."""
        return add_constant(self._graph, f"{self._weight_name}_{suffix}", array)

    def add_shared(self, name: str, array: np.ndarray | np.floating) -> ir.Value:
        """Add a constant that is the same for all products."""
        return add_constant(self._graph, f"quantized.{name}", array)

    def share(self, x: ir.Value, what: str, make: Callable[[], ir.Value]) -> ir.Value:
        """Return what is made of a value, once for all products that need it."""
        if (x, what) not in self._shared:
            self._shared[x, what] = make()
        return self._shared[x, what]

    def insert(self, op_type: str, inputs: list[ir.Value], **attributes: int) -> ir.Value:
        """Put a node before the product and return its output."""
        return self.insert_many(op_type, inputs, 1, **attributes)[0]

    def insert_many(self, op_type: str, inputs: list[ir.Value], outputs: int, **attributes: int) -> Sequence[ir.Value]:
        """Put a node of several outputs before the product and return them."""
        name = f"{self._scope}/{op_type}_{self._counts[op_type]}"
        self._counts[op_type] += 1
        return insert_nodes(self._graph, self._node, name, op_type, inputs, outputs=outputs, **attributes)

    def round_activation(self, x: ir.Value, suffix: str, step: np.float32, zero_point: np.generic) -> ir.Value:
        """Round an activation to steps and back, in the dtype of the number that stands for zero."""
        scale, zero = self.add(f"{suffix}_scale", step), self.add(f"{suffix}_zero_point", zero_point)
        return self.insert("DequantizeLinear", [self.insert("QuantizeLinear", [x, scale, zero]), scale, zero])

    def multiply(self, x: ir.Value, weight: QuantizedWeight) -> ir.Value:
        """Put in a product with a weight in few bits, of which real numbers are made, and return what it gives."""
        values, scale = self.add("quantized", weight.values), self.add("scale", weight.scale)
        if weight.block_size is not None:
            real = self.insert("DequantizeLinear", [values, scale], axis=0, block_size=weight.block_size)
        else:
            zero = self.add("zero_point", np.zeros(weight.scale.shape, weight.values.dtype))
            real = self.insert("DequantizeLinear", [values, scale, zero], axis=1)
        product = self.insert("MatMul", [x, real])
        product.shape, product.type = self.output.shape, ir.TensorType(ir.DataType.FLOAT)
        return product

    def round_factors(self, recipe: ProductRecipe, numbers: NumberFormat) -> None:
        """Round weight and activation, the latter with a scale known beforehand, and smoothed if it is to be."""
        if recipe.smoothing is not None:
            self.activation = self.insert("Mul", [self.activation, self.add("smoothing", 1 / recipe.smoothing)])
            self.weight = self.weight * recipe.smoothing[:, None]
        self._keep_bias_apart()
        step, zero = recipe.compute_step(numbers), numbers.dtype.type(0)
        rounded = self.round_activation(self.activation, "input", step, zero)
        self.replace_output(self.multiply(rounded, numbers.round_weight(self.weight)))

    def replace_output(self, value: ir.Value) -> None:
        """Take a value for what the product gives, and remove the product."""
        if self._dtype != ir.DataType.FLOAT:
            value = self.insert("Cast", [value], to=int(self._dtype))
        replace_value(self._graph, self.output, value)

    def _keep_bias_apart(self) -> None:
        """Subtract the negative bias of a product of two matrices in place of adding it.

        onnxruntime joins a MatMul and an Add of matrices into a Gemm, before it looks for quantized products, and has
        no quantized Gemm with a bias in fp32: it would make real numbers of the weight at every run.
        """
        users = [user for user, _ in self.output.uses()]
        is_matrix = self.output.shape is not None and len(self.output.shape) == 2 and self._dtype == ir.DataType.FLOAT
        if not is_matrix or len(users) != 1 or users[0].op_type != "Add" or not is_constant(get_input(users[0], 1)):
            return
        (add,) = users
        inputs = [self.output, self.add("negative_bias", -read_constant(get_input(add, 1)))]
        (difference,) = insert_nodes(self._graph, add, f"{self._scope}/Sub_0", "Sub", inputs)
        replace_value(self._graph, add.outputs[0], difference)
