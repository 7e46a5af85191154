"""Putting constants and nodes into a graph under names of our own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Sequence


def get_input(node: ir.Node, index: int) -> ir.Value:
    """Return an input that a node must have."""
    value = node.inputs[index]
    if value is None:
        raise RuntimeError(f"node {node.name} has no input {index}")
    return value


def is_constant(value: ir.Value) -> bool:
    """Whether a value is an initializer."""
    return value.const_value is not None and value.producer() is None


def read_constant(value: ir.Value) -> np.ndarray:
    """Return the content of an initializer."""
    if value.const_value is None:
        raise RuntimeError(f"{value.name} is no constant")
    return value.const_value.numpy()


def add_constant(graph: ir.Graph, name: str, array: np.ndarray | np.generic) -> ir.Value:
    """Add a constant, or return the one of that name, which must then be equal."""
    tensor = ir.tensor(np.asarray(array), name=name)
    if (known := graph.initializers.get(name)) is not None:
        if not np.array_equal(read_constant(known), tensor.numpy()):
            raise RuntimeError(f"the graph has another constant of the name {name!r}")
        return known
    value = ir.Value(
        name=name, shape=ir.Shape(tensor.numpy().shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def insert_nodes(
    graph: ir.Graph,
    before: ir.Node,
    name: str,
    op_type: str,
    inputs: Sequence[ir.Value],
    *,
    outputs: int = 1,
    **attributes: int,
) -> Sequence[ir.Value]:
    """Put a node into a graph and return its outputs, which are named after it."""
    node = ir.node(op_type, inputs, attributes=attributes or None, num_outputs=outputs, name=name)
    for index, value in enumerate(node.outputs):
        value.name = f"{name}:{index}"
    graph.insert_before(before, node)
    return node.outputs


def replace_value(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Make whoever uses a value use another one, which takes its name, and remove the node that made it."""
    node, name = old.producer(), old.name
    replace_uses(old, new)
    if node is None:
        raise RuntimeError(f"{name} comes from no node")
    graph.remove(node, safe=True)
    new.name = name


def replace_uses(old: ir.Value, new: ir.Value) -> None:
    """Make whoever uses a value use another one."""
    if new.producer() is not None:
        new.shape, new.type = old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
