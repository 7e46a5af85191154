"""Half-precision graphs on a CPU: computed in fp32, and rounded after every node as half-precision hardware rounds.

onnxruntime's CPU provider has few half-precision kernels. Around the others it puts Casts for fp16 itself, and takes
those between two of them out again: ``sqrt(300 * 300)`` in fp16 is then 300, where the product overflows on a GPU
(onnxruntime 1.32). For bf16 it refuses to load the graph. So the rounding is spelled out: every half value becomes an
fp32 value that a Cast to half and back has rounded. Matrix products sum in fp32, as tensor cores do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from collections.abc import Iterator

HALF_TYPES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
# What they return is in their inputs: there is nothing to round.
EXACT_OPS = frozenset(
    {
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Max",
        "Min",
        "Neg",
        "Pad",
        "Relu",
        "Reshape",
        "ScatterND",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    }
)
_SOURCES = frozenset({"Constant", "ConstantOfShape"})  # their dtype is in an attribute


def describe_rounding(precision: str) -> str | None:
    """Say what onnxruntime's CPU provider is made to do with a graph of this precision; None: what the graph says."""
    if precision not in ("fp16", "bf16"):
        return None
    return f"onnxruntime on a CPU computes {precision} in fp32 and rounds every result as a GPU does, which takes time."


def spell_rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph of fp32 operators that rounds every value of a half-precision graph as that does.

    Inputs and outputs keep their dtypes, and all values that nodes compute keep their names. Weights stay half in the
    file; their Casts are folded when the graph is loaded.

    Args:
        model: The graph; its weights may be external, and need not be there.
    """
    types = _infer_types(model)
    spelled = onnx.ModelProto()
    spelled.CopyFrom(model)
    graph = spelled.graph
    del graph.node[:], graph.value_info[:]
    outside = [value.name for value in (*graph.initializer, *graph.input) if types.get(value.name) in HALF_TYPES]
    outputs = {value.name for value in graph.output}
    # Under which name a half value is there in fp32; all others have their own.
    names = {name: f"{name}/fp32" for name in (*outside, *(name for name in outputs if types[name] in HALF_TYPES))}
    for name in outside:
        graph.node.append(_cast(name, names[name], TensorProto.FLOAT))
    for node in model.graph.node:
        graph.node.extend(_spell_node(node, types, names))
    for name in outputs & names.keys():
        graph.node.append(_cast(names[name], name, types[name]))
    return spelled


def _infer_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every value."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _spell_node(node: onnx.NodeProto, types: dict[str, int], names: dict[str, str]) -> Iterator[onnx.NodeProto]:
    """Yield a node on fp32 values, and the Casts that round what it returns."""
    spelled = onnx.NodeProto()
    spelled.CopyFrom(node)
    spelled.input[:] = [names.get(name, name) for name in node.input]
    spelled.output[:] = [names.get(name, name) for name in node.output]
    half_outputs = [index for index, name in enumerate(node.output) if types.get(name) in HALF_TYPES]
    if node.op_type == "Cast" and not half_outputs and types.get(node.input[0]) in HALF_TYPES:
        yield spelled  # a Cast of an fp32 value to fp32 does nothing, to another type the same
        return
    if not half_outputs or node.op_type in EXACT_OPS:
        yield spelled
        return
    is_half_already = node.op_type in _SOURCES or node.op_type == "Cast"
    rounding = []
    for index in half_outputs:
        name, half_type = spelled.output[index], types[node.output[index]]
        rounded, spelled.output[index] = f"{name}/rounded", f"{name}/{'rounded' if is_half_already else 'exact'}"
        if not is_half_already:
            rounding.append(_cast(spelled.output[index], rounded, half_type))
        rounding.append(_cast(rounded, name, TensorProto.FLOAT))
    yield spelled
    yield from rounding


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=to)
