"""The graph promises: what every exported graph is checked for before it is written.

Only ``ai.onnx`` operators, no functions, no control flow, symbolic ``batch`` and ``seq``, and nowhere a number that
comes from the traced sizes instead of the model. The last is asked of the graph as it was traced: what quantization
puts into it later has sizes of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from flash_export.errors import GraphError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flash_export.exporters.traced_sizes import TracedSizes
    from flash_export.interface import TensorSpec

STANDARD_DOMAINS = ("", "ai.onnx")
CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
MAX_SHAPE_LENGTH = 8
INTEGER_TYPES = (ir.DataType.INT64, ir.DataType.INT32)


def check_promises(model: onnx.ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Check a graph that is about to be written; see :func:`check_traced_sizes` for what is asked before.

    Args:
        model: The graph; its weights may be external, and need not be there yet.
        inputs: What the inputs must be, in order.
        outputs: What the outputs must be, in order.

    Raises:
        GraphError: A promise is broken; the message names the node.
    """
    try:
        onnx.checker.check_model(_declare_external_weights(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"the ONNX checker refuses the graph: {error}; please report this model's config") from error
    for problem in (
        *_find_foreign_operators(model),
        *_find_interface_changes(model, inputs, outputs),
    ):
        raise _make_error(problem)


def check_traced_sizes(model: ir.Model, traced: TracedSizes) -> None:
    """Check that nothing in a graph comes from the sizes that it was traced with.

    Args:
        model: The graph as it was traced.
        traced: Those sizes.

    Raises:
        GraphError: A constant shape or the size of a value does; the message names the node.
    """
    for problem in _find_baked_sizes(model.graph, traced):
        raise _make_error(problem)


def _make_error(problem: str) -> GraphError:
    return GraphError(f"the exported graph breaks a promise: {problem}; please report this model's config")


def _declare_external_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose external weights are inputs, which the checker takes without looking for their file."""
    declared = onnx.ModelProto()
    declared.CopyFrom(model)
    del declared.graph.initializer[:]
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            weight = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            declared.graph.input.append(weight)
        else:
            declared.graph.initializer.append(tensor)
    return declared


def _find_foreign_operators(model: onnx.ModelProto) -> Iterator[str]:
    for domain in {opset.domain for opset in model.opset_import} - set(STANDARD_DOMAINS):
        yield f"it imports the operator set {domain!r}, wanted ai.onnx alone"
    for function in model.functions:
        yield f"it holds the local function {function.name!r}, wanted none"
    for node in model.graph.node:
        if node.domain not in STANDARD_DOMAINS:
            yield f"node {node.name!r} is {node.domain}::{node.op_type}, wanted ai.onnx operators alone"
        if node.op_type in CONTROL_FLOW or any(attribute.HasField("g") for attribute in node.attribute):
            yield f"node {node.name!r} is control flow ({node.op_type}), wanted none"


def _find_interface_changes(
    model: onnx.ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> Iterator[str]:
    for kind, values, specs in (("input", model.graph.input, inputs), ("output", model.graph.output, outputs)):
        actual = [_describe_value(value) for value in values]
        expected = [(spec.name, spec.dtype, spec.shape) for spec in specs]
        if actual != expected:
            yield f"its {kind}s are {actual}, wanted {expected}"


def _describe_value(value: onnx.ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
    tensor = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    return value.name, dtype, tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)


def _find_baked_sizes(graph: ir.Graph, traced: TracedSizes) -> Iterator[str]:
    """Look for the traced sizes among constant shapes and among the sizes of intermediate values."""
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype in INTEGER_TYPES and tensor.size <= MAX_SHAPE_LENGTH:
            numbers = tensor.numpy().reshape(-1).tolist()
            if baked := traced.telltales.intersection(numbers):
                users = ", ".join(repr(user.name) for user, _ in value.uses())
                yield f"node {users} takes the constant {numbers}, where {set(baked)} comes from tracing"
    for node in graph:
        for value in node.outputs:
            sizes = [size for size in value.shape or () if isinstance(size, int)]
            if not value.is_graph_output() and (baked := traced.telltales.intersection(sizes)):
                yield f"value {value.name!r} has the fixed sizes {sizes}, where {set(baked)} comes from tracing"
