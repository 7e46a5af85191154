"""Making one product of the two that a layer projects its input by.

In fp32 the values have a product of their own, because a Split copies what it splits. In few bits that costs less than
to round the input once more, and every graph is to read the same weights: those of one product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx_ir.passes.common import RemoveUnusedNodesPass

from flash_export.exporters.quantization.nodes import (
    add_constant,
    get_input,
    insert_nodes,
    is_constant,
    read_constant,
    replace_uses,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

_VALUE, _APART = "value_", "apart_"


def join_products(model: ir.Model) -> None:
    """Rewrite a graph in place so that values, gates, and what queries and keys are made of are one product.

    Before: ``x -> MatMul(value_weight) -> Add -> silu -> v`` and ``x -> MatMul(weight) -> Add -> silu -> Split``; or,
    in the graphs that read few tokens, ``x -> MatMul(Concat(value_weight, weight))``.
    After: ``x -> MatMul(weight) -> Add -> silu -> Split -> v, ...``, whose weight and bias are those of both.
    """
    graph = model.graph
    values = [name for name in graph.initializers if name.endswith(f".{_VALUE}weight")]
    for projection in (name.removesuffix(f"{_VALUE}weight") for name in values):
        weight = _join_constants(graph, projection, "weight")
        bias = _join_constants(graph, projection, "bias") if f"{projection}value_bias" in graph.initializers else None
        value, rest = (graph.initializers[f"{projection}{part}weight"] for part in (_VALUE, _APART))
        for node in [node for node, _ in value.uses() if node.op_type == "MatMul"]:
            other = next(user for user, _ in rest.uses() if user.inputs[0] is node.inputs[0])
            _join_pair(graph, projection, (node, other), weight, bias)
    RemoveUnusedNodesPass()(model)


def _join_constants(graph: ir.Graph, projection: str, name: str) -> ir.Value:
    """Return both weights, or both biases, as one of the name that the second had."""
    value, rest = graph.initializers[f"{projection}{_VALUE}{name}"], graph.initializers[f"{projection}{name}"]
    rest.name = f"{projection}{_APART}{name}"
    joined = add_constant(
        graph, f"{projection}{name}", np.concatenate((read_constant(value), read_constant(rest)), axis=-1)
    )
    for node in [node for node, _ in value.uses() if node.op_type == "Concat"]:
        replace_uses(node.outputs[0], joined)
    return joined


def _join_pair(
    graph: ir.Graph, projection: str, pair: tuple[ir.Node, ir.Node], weight: ir.Value, bias: ir.Value | None
) -> None:
    """Make one product of two of the same input, and split what comes of it where their ways part."""
    scope, first = f"{projection}joined", min(pair, key=list(graph).index)
    sizes = [len(read_constant(get_input(node, 1)).T) for node in pair]

    def insert(op_type: str, *inputs: ir.Value) -> ir.Value:
        (value,) = insert_nodes(graph, first, f"{scope}/{op_type}_0", op_type, inputs)
        return value

    joined = insert("MatMul", get_input(first, 0), weight)
    ends = [node.outputs[0] for node in pair]
    if bias is not None:
        joined, ends = insert("Add", joined, bias), [_follow(end, "Add") for end in ends]
    if all({user.op_type for user, _ in end.uses()} == {"Sigmoid", "Mul"} for end in ends):
        joined, ends = insert("Mul", joined, insert("Sigmoid", joined)), [_follow(end, "Mul") for end in ends]
    parts: Sequence[ir.Value] = ends
    users = [user for user, _ in ends[1].uses()]
    if [user.op_type for user in users] == ["Split"] and is_constant(widths := get_input(users[0], 1)):
        parts, sizes = [ends[0], *users[0].outputs], [sizes[0], *read_constant(widths).tolist()]
    each = add_constant(graph, f"joined.sizes.{'.'.join(map(str, sizes))}", np.array(sizes, np.int64))
    made = insert_nodes(graph, first, f"{scope}/Split_0", "Split", [joined, each], outputs=len(parts), axis=-1)
    for old, new in zip(parts, made, strict=True):
        replace_uses(old, new)
        name, old.name = old.name, f"{old.name}.apart"
        new.name = name


def _follow(value: ir.Value, op_type: str) -> ir.Value:
    """Return what the only node of this kind makes of a value."""
    (node,) = {user for user, _ in value.uses() if user.op_type == op_type}
    return node.outputs[0]
