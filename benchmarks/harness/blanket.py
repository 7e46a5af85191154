"""An fp32 graph as a runtime computes it that takes bf16 for everything: rounded everywhere, without islands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from flash_export.runtime.half_on_cpu import EXACT_OPS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np

_INTEGERS = (TensorProto.INT32, TensorProto.INT64)


def round_everything(path: Path) -> onnx.ModelProto:
    """Read an fp32 graph, and round its weights and what every node returns to bf16.

    Before: a -> Op -> b
    After: a -> Op -> Cast(bf16) -> Cast(fp32) -> b

    Products still sum in fp32, as the instructions for bf16 do. Values that become integers, positions for a table,
    stay as they are: they would read outside of the table.
    """
    model = onnx.load(path)
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    rounded = {value.name for value in inferred if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    rounded -= _list_counted(graph)
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(_round(numpy_helper.to_array(tensor)), tensor.name))
    nodes = [new for node in graph.node for new in _round_node(node, rounded)]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return model


def _list_counted(graph: onnx.GraphProto) -> set[str]:
    """Return the values that integers are made of."""
    counted: set[str] = set()
    for node in reversed(graph.node):
        to = next((one.i for one in node.attribute if one.name == "to"), None)
        if (node.op_type == "Cast" and to in _INTEGERS) or counted & set(node.output):
            counted |= set(node.input)
    return counted


def _round_node(node: onnx.NodeProto, rounded: set[str]) -> Iterator[onnx.NodeProto]:
    """Yield a node and the Casts behind it."""
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    casts = []
    for index, name in enumerate(node.output):
        if name in rounded and node.op_type not in EXACT_OPS:
            changed.output[index] = exact = f"{name}/exact"
            casts.append(helper.make_node("Cast", [exact], [f"{name}/bf16"], to=TensorProto.BFLOAT16))
            casts.append(helper.make_node("Cast", [f"{name}/bf16"], [name], to=TensorProto.FLOAT))
    yield changed
    yield from casts


def _round(values: np.ndarray) -> np.ndarray:
    rounded: np.ndarray = torch.from_numpy(values.copy()).bfloat16().float().numpy()
    return rounded
