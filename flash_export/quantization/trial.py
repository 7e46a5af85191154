"""The forward graph of a model, to be written quantized in one way after another without tracing it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from flash_export.bundle.bundle import GRAPH_FILE
from flash_export.config import FORWARD
from flash_export.exporters.graphs import build_graph_module
from flash_export.exporters.lowering.registry import lower_model
from flash_export.exporters.lowering.shared_modules import join_projections
from flash_export.exporters.quantization.nodes import read_constant
from flash_export.exporters.quantization.products import list_products
from flash_export.exporters.quantization.rewrite import quantize_graph
from flash_export.exporters.serialization import SplitModels, write_models
from flash_export.exporters.traced_sizes import choose_traced_sizes
from flash_export.exporters.tracing import TracedGraph, trace_model

if TYPE_CHECKING:
    from pathlib import Path

    import onnx
    from jaxtyping import Float
    from numpy import ndarray

    from flash_export.bundle.manifest import GraphSpec
    from flash_export.exporters.quantization.recipe import QuantizationRecipe
    from flash_export.models.base import ReferenceModel


@dataclass(frozen=True)
class TrialProduct:
    """A product that can be quantized.

    Attributes:
        name: Such as ``layers.3.out``.
        input_name: Name of the value that is multiplied with the weight.
        weight: The weight, ``(k, n)``.
    """

    name: str
    input_name: str
    weight: Float[ndarray, "k n"]


class TrialGraph:
    """A traced forward graph whose weights are in memory once, however many variants are written."""

    def __init__(self, model: ReferenceModel, graph: GraphSpec) -> None:
        """Lower and trace a model.

        Args:
            model: The reference model.
            graph: Contract of its forward graph; its opset is the one to trace with.
        """
        lowered = lower_model(model, opset=graph.opset)
        join_projections(lowered)
        module = build_graph_module(FORWARD, lowered)
        found = trace_model(module, graph, choose_traced_sizes(module, model.config.interface, graph))
        traced, self._probes = found.model, found.probes
        self.graph = graph
        self.products = tuple(
            TrialProduct(product.name, str(product.input.name), read_constant(product.weight))
            for product in list_products(traced)
        )
        models = SplitModels(f"{GRAPH_FILE}.data")
        self._skeleton: onnx.ModelProto = models.add(GRAPH_FILE, traced)
        self._weights = models.weights

    def copy_traced(self) -> TracedGraph:
        """Return the graph as it was traced."""
        model = ir.from_proto(self._skeleton)
        for name, value in model.graph.initializers.items():
            if name in self._weights:
                value.const_value = self._weights[name]
        return TracedGraph(model, self._probes)

    def write(self, folder: Path, recipe: QuantizationRecipe | None = None) -> Path:
        """Write the graph, quantized by a recipe, and return its file."""
        model = self.copy_traced().model
        if recipe is not None:
            quantize_graph(model, recipe)
        models = SplitModels(f"{GRAPH_FILE}.data")
        models.add(GRAPH_FILE, model)
        del models.skeletons[GRAPH_FILE].graph.value_info[:]
        write_models(models, folder)
        return folder / GRAPH_FILE
