"""Rewriting a traced graph so that its products with weights are computed, or its weights kept, in few bits.

The spellings are those that runtimes fuse: QuantizeLinear and DequantizeLinear around a MatMul become one integer
product in onnxruntime and in TensorRT, a DequantizeLinear of blocks a product with 4-bit weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from flash_export.config import FP8, INT4, INT8, INT8_DYNAMIC
from flash_export.exporters.quantization.nodes import (
    add_constant,
    get_input,
    insert_nodes,
    is_constant,
    read_constant,
    replace_value,
)
from flash_export.exporters.quantization.numbers import (
    FP8_MAX,
    INT8_MAX,
    round_to_fp8,
    round_to_int4,
    round_to_int8,
)
from flash_export.exporters.quantization.products import list_products
from flash_export.exporters.quantization.tables import halve_embedding, shorten_tables

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float

    from flash_export.exporters.quantization.numbers import QuantizedWeight
    from flash_export.exporters.quantization.plan import ProductPlan, QuantizationPlan
    from flash_export.exporters.quantization.products import Product


def quantize_graph(model: ir.Model, plan: QuantizationPlan) -> None:
    """Rewrite a graph in place; products that the plan does not name stay as they are."""
    for product in list(list_products(model)):
        if (wanted := plan.products.get(product.name)) is not None:
            _REWRITERS[wanted.scheme](_Place(model.graph, product), wanted)
    halve_embedding(model.graph)
    shorten_tables(model.graph)
    used = {value.name for node in model.graph for value in node.inputs if value is not None}
    for name in [name for name in model.graph.initializers if name not in used]:
        del model.graph.initializers[name]


class _Place:
    """A product in a graph, and the means to put nodes around it."""

    def __init__(self, graph: ir.Graph, product: Product) -> None:
        self.graph, self.node, self.scope = graph, product.node, f"{product.name}.quantized"
        self.activation, self.weight_name = product.input, product.weight.name
        self.weight: Float[np.ndarray, "k n"] = read_constant(product.weight)

    def add(self, suffix: str, array: np.ndarray | np.floating) -> ir.Value:
        """Add a constant."""
        return add_constant(self.graph, f"{self.weight_name}_{suffix}", array)

    def insert(self, op_type: str, inputs: list[ir.Value], *, number: int = 0, **attributes: int) -> ir.Value:
        """Put a node before the product and return its output."""
        name = f"{self.scope}/{op_type}_{number}"
        return insert_nodes(self.graph, self.node, name, op_type, inputs, **attributes)[0]

    def smooth(self, plan: ProductPlan) -> None:
        """Divide the activation, and multiply the weight, channel by channel."""
        if plan.smoothing is not None:
            inverse = self.add("smoothing", 1 / plan.smoothing)
            self.activation = self.insert("Mul", [self.activation, inverse])
            self.weight = self.weight * plan.smoothing[:, None]

    def dequantize_weight(self, quantized: QuantizedWeight) -> ir.Value:
        """Put the weight in few bits into the graph, and what makes real numbers of it."""
        values, scale = self.add("quantized", quantized.values), self.add("scale", quantized.scale)
        if quantized.block_size is not None:
            return self.insert("DequantizeLinear", [values, scale], axis=0, block_size=quantized.block_size)
        zero = self.add("zero_point", np.zeros(quantized.scale.shape, quantized.values.dtype))
        return self.insert("DequantizeLinear", [values, scale, zero], axis=1)

    def round_activation(
        self, x: ir.Value, suffix: str, step: np.float32, dtype: np.dtype, *, number: int = 0
    ) -> ir.Value:
        """Round an activation to whole numbers of steps and back."""
        scale, zero = self.add(f"{suffix}_scale", step), self.add(f"{suffix}_zero_point", np.zeros((), dtype))
        rounded = self.insert("QuantizeLinear", [x, scale, zero], number=number)
        return self.insert("DequantizeLinear", [rounded, scale, zero], number=number + 1)

    def replace_factors(self, activation: ir.Value, weight: ir.Value) -> None:
        """Make the product one of these."""
        self.node.replace_input_with(0, activation)
        self.node.replace_input_with(1, weight)


def _round_both(place: _Place, plan: ProductPlan) -> None:
    """Round weight and activation, the latter with a scale known beforehand."""
    assert plan.activation_max is not None  # a plan of such a scheme has one
    is_float = plan.scheme == FP8
    step = np.float32(plan.activation_max / (FP8_MAX if is_float else INT8_MAX))
    if plan.terms > 1:
        _round_in_two_terms(place, step)
        return
    place.smooth(plan)
    weight = round_to_fp8(place.weight) if is_float else round_to_int8(place.weight)
    activation = place.round_activation(place.activation, "input", step, weight.values.dtype)
    place.replace_factors(activation, place.dequantize_weight(weight))
    _keep_bias_apart(place)


def _round_in_two_terms(place: _Place, step: np.float32) -> None:
    """Make one int8 product of twice the rows: the activation in whole steps, then what is left of it, in finer ones.

    Before: ``activation -> MatMul(weight)``. After: ``Concat(whole, finer rest) -> Quantize -> MatMul(int8 weight) ->
    Split -> Sub``. The weight has one reader, because onnxruntime, where it makes unsigned numbers of it (see
    ``session.x64quantprecision`` in ``runtime/ort.py``), fails at the second.
    """
    scaled = place.insert("Mul", [place.activation, place.add("inverse_step", np.float32(1) / step)])
    whole = place.insert("Round", [scaled])
    finer = np.float32(2 * INT8_MAX)
    rest = place.insert("Mul", [place.insert("Sub", [whole, scaled]), place.add("finer", finer)], number=1)
    terms = place.insert("Concat", [whole, rest], axis=0)
    rounded = place.round_activation(terms, "terms", np.float32(1), np.dtype(np.int8))
    weight = place.dequantize_weight(round_to_int8(place.weight * step))
    output = place.node.outputs[0]
    product = place.insert("MatMul", [rounded, weight])
    product.type = output.type
    name = f"{place.scope}/Split_0"
    first, second = insert_nodes(place.graph, place.node, name, "Split", [product], outputs=2, axis=0, num_outputs=2)
    small = place.insert("Mul", [second, place.add("inverse_finer", 1 / finer)], number=2)
    for value in (first, second, small):
        value.shape, value.type = output.shape, output.type
    replace_value(place.graph, output, place.insert("Sub", [first, small], number=1))


def _keep_bias_apart(place: _Place) -> None:
    """Subtract the negative bias of a product of two matrices in place of adding it.

    onnxruntime joins a MatMul and an Add of matrices into a Gemm, before it looks for quantized products, and has no
    quantized Gemm with a bias in fp32: it would make real numbers of the weight at every run.
    """
    output = place.node.outputs[0]
    users = [user for user, _ in output.uses()]
    is_matrix = output.shape is not None and len(output.shape) == 2
    if not is_matrix or len(users) != 1 or users[0].op_type != "Add" or not is_constant(get_input(users[0], 1)):
        return
    (add,) = users
    negated = place.add("negative_bias", -read_constant(get_input(add, 1)))
    (difference,) = insert_nodes(place.graph, add, f"{place.scope}/Sub_0", "Sub", [output, negated])
    replace_value(place.graph, add.outputs[0], difference)


def _round_at_run_time(place: _Place, plan: ProductPlan) -> None:
    """Round the activation with a scale that is measured in every run."""
    place.smooth(plan)
    weight = round_to_int8(place.weight)
    values, scale = place.add("quantized", weight.values), place.add("scale", weight.scale)
    zero = place.add("zero_point", np.zeros((), np.int8))
    name = f"{place.scope}/DynamicQuantizeLinear_0"
    rounded, step, offset = insert_nodes(
        place.graph, place.node, name, "DynamicQuantizeLinear", [place.activation], outputs=3
    )
    total = place.insert("MatMulInteger", [rounded, values, offset, zero])
    total = place.insert("Cast", [total], to=int(ir.DataType.FLOAT))
    factor = place.insert("Mul", [step, scale], number=1)
    replace_value(place.graph, place.node.outputs[0], place.insert("Mul", [total, factor], number=2))


def _round_blocks(place: _Place, plan: ProductPlan) -> None:
    """Keep the weight in 4 bits; the product is one of real numbers."""
    place.replace_factors(place.activation, place.dequantize_weight(round_to_int4(place.weight, plan.block_size)))


_REWRITERS: dict[str, Callable[[_Place, ProductPlan], None]] = {
    INT8: _round_both,
    FP8: _round_both,
    INT8_DYNAMIC: _round_at_run_time,
    INT4: _round_blocks,
}
