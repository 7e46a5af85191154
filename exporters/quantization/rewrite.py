"""Rewriting a traced graph so that its products with weights are computed, or its weights kept, in few bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

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
    from collections.abc import Sequence

    import onnx_ir as ir
    from jaxtyping import Float

    from flash_export.exporters.quantization.numbers import NumberFormat, QuantizedWeight
    from flash_export.exporters.quantization.products import Product
    from flash_export.exporters.quantization.recipe import ProductRecipe, QuantizationRecipe


def quantize_graph(model: ir.Model, recipe: QuantizationRecipe) -> None:
    """Rewrite a graph in place; products that the recipe does not name stay as they are."""
    for product in list(list_products(model)):
        if (wanted := recipe.products.get(product.name)) is not None:
            wanted.scheme.rewrite(Place(model.graph, product), wanted)
    halve_embedding(model.graph)
    shorten_tables(model.graph)
    used = {value.name for node in model.graph for value in node.inputs if value is not None}
    for name in [name for name in model.graph.initializers if name not in used]:
        del model.graph.initializers[name]


class Place:
    """A product ``activation weight`` that is to be rewritten, and the means to put nodes before it."""

    def __init__(self, graph: ir.Graph, product: Product) -> None:
        """Take a product of a graph as it was traced."""
        self._graph, self._node, self._scope = graph, product.node, f"{product.name}.quantized"
        self.activation, self._weight_name = product.input, product.weight.name
        self.weight: Float[np.ndarray, "k n"] = read_constant(product.weight)

    @property
    def output(self) -> ir.Value:
        """What the product gives."""
        return self._node.outputs[0]

    def add(self, suffix: str, array: np.ndarray | np.floating) -> ir.Value:
        """Add a constant."""
        return add_constant(self._graph, f"{self._weight_name}_{suffix}", array)

    def insert(self, op_type: str, inputs: list[ir.Value], *, number: int = 0, **attributes: int) -> ir.Value:
        """Put a node before the product and return its output."""
        return self.insert_many(op_type, inputs, 1, number=number, **attributes)[0]

    def insert_many(
        self, op_type: str, inputs: list[ir.Value], outputs: int, *, number: int = 0, **attributes: int
    ) -> Sequence[ir.Value]:
        """Put a node of several outputs before the product and return them."""
        name = f"{self._scope}/{op_type}_{number}"
        return insert_nodes(self._graph, self._node, name, op_type, inputs, outputs=outputs, **attributes)

    def smooth(self, recipe: ProductRecipe) -> None:
        """Divide the activation, and multiply the weight, channel by channel."""
        if recipe.smoothing is not None:
            inverse = self.add("smoothing", 1 / recipe.smoothing)
            self.activation = self.insert("Mul", [self.activation, inverse])
            self.weight = self.weight * recipe.smoothing[:, None]

    def dequantize_weight(self, quantized: QuantizedWeight) -> ir.Value:
        """Put the weight in few bits into the graph, and what makes real numbers of it."""
        values, scale = self.add("quantized", quantized.values), self.add("scale", quantized.scale)
        if quantized.block_size is not None:
            return self.insert("DequantizeLinear", [values, scale], axis=0, block_size=quantized.block_size)
        zero = self.add("zero_point", np.zeros(quantized.scale.shape, quantized.values.dtype))
        return self.insert("DequantizeLinear", [values, scale, zero], axis=1)

    def round_activation(self, x: ir.Value, suffix: str, step: np.float32, dtype: np.dtype) -> ir.Value:
        """Round an activation to steps and back."""
        scale, zero = self.add(f"{suffix}_scale", step), self.add(f"{suffix}_zero_point", np.zeros((), dtype))
        rounded = self.insert("QuantizeLinear", [x, scale, zero])
        return self.insert("DequantizeLinear", [rounded, scale, zero], number=1)

    def round_factors(self, recipe: ProductRecipe, numbers: NumberFormat) -> None:
        """Round weight and activation, the latter with a scale known beforehand."""
        self.smooth(recipe)
        step = compute_step(recipe, numbers)
        activation = self.round_activation(self.activation, "input", step, numbers.dtype)
        self.replace_factors(activation, self.dequantize_weight(numbers.round_weight(self.weight)))
        self._keep_bias_apart()

    def replace_factors(self, activation: ir.Value, weight: ir.Value) -> None:
        """Make the product one of these."""
        self._node.replace_input_with(0, activation)
        self._node.replace_input_with(1, weight)

    def replace_output(self, value: ir.Value) -> None:
        """Take a value for what the product gives, and remove the product."""
        replace_value(self._graph, self.output, value)

    def _keep_bias_apart(self) -> None:
        """Subtract the negative bias of a product of two matrices in place of adding it.

        onnxruntime joins a MatMul and an Add of matrices into a Gemm, before it looks for quantized products, and has
        no quantized Gemm with a bias in fp32: it would make real numbers of the weight at every run.
        """
        users = [user for user, _ in self.output.uses()]
        is_matrix = self.output.shape is not None and len(self.output.shape) == 2
        if not is_matrix or len(users) != 1 or users[0].op_type != "Add" or not is_constant(get_input(users[0], 1)):
            return
        (add,) = users
        inputs = [self.output, self.add("negative_bias", -read_constant(get_input(add, 1)))]
        (difference,) = insert_nodes(self._graph, add, f"{self._scope}/Sub_0", "Sub", inputs)
        replace_value(self._graph, add.outputs[0], difference)


def compute_step(recipe: ProductRecipe, numbers: NumberFormat) -> np.float32:
    """Return the step of an activation whose range is known beforehand."""
    assert recipe.activation_max is not None  # a recipe of such a scheme has one
    return np.float32(recipe.activation_max / numbers.max)
