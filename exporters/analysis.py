"""What is in a graph: operators, nodes per block, parameters, work per token."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from flash_export.errors import BundleError
from flash_export.graph_files import read_graph

if TYPE_CHECKING:
    from pathlib import Path

BLOCK_NAME = re.compile(r"layers\.(\d+)[./]")
_PACKED = ("int4", "uint4", "float4_e2m1fn")


@dataclass(frozen=True)
class GraphAnalysis:
    """Counts over one ONNX file.

    Attributes:
        opset: ``ai.onnx`` opset.
        inputs: ``name dtype (axes)`` of each input.
        outputs: The same of each output.
        operators: Number of nodes by operator, most frequent first.
        nodes_by_block: Number of nodes of each block; nodes outside the blocks are not counted.
        num_nodes: All nodes.
        num_parameters: Elements of the floating-point constants.
        constant_bytes: Bytes of all constants.
        producer: Tool and version that wrote the file.
        metadata: What the graph says of itself, by key.
    """

    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: dict[str, int]
    nodes_by_block: dict[int, int]
    num_nodes: int
    num_parameters: int
    constant_bytes: int
    producer: str
    metadata: dict[str, str]


def analyse_graph(path: Path) -> GraphAnalysis:
    """Count what is in an ONNX file, without reading its weights.

    Raises:
        BundleError: The file cannot be read as ONNX.
    """
    model = read_graph(path)
    try:
        return _count(model)
    except (KeyError, TypeError) as error:
        raise BundleError(f"{path} is damaged: it has a dtype that is not known ({error}); export it again") from error


def _count(model: onnx.ModelProto) -> GraphAnalysis:
    operators = Counter(node.op_type for node in model.graph.node)
    blocks = Counter(int(match[1]) for node in model.graph.node if (match := BLOCK_NAME.match(node.name)))
    sizes = [(tensor, _count_elements(tensor)) for tensor in model.graph.initializer]
    return GraphAnalysis(
        opset=next((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), 0),
        inputs=tuple(map(_describe_value, model.graph.input)),
        outputs=tuple(map(_describe_value, model.graph.output)),
        operators=dict(operators.most_common()),
        nodes_by_block=dict(sorted(blocks.items())),
        num_nodes=len(model.graph.node),
        num_parameters=sum(size for tensor, size in sizes if _get_dtype(tensor.data_type).kind == "f"),
        constant_bytes=count_constant_bytes(model),
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )


def count_constant_bytes(model: onnx.ModelProto) -> int:
    """Return the bytes of all initializers, as they are stored: two numbers of 4 bits share one.

    Raises:
        KeyError: One has a dtype that is not known.
    """
    return sum(_count_bytes(tensor) for tensor in model.graph.initializer)


def _count_bytes(tensor: onnx.TensorProto) -> int:
    dtype, count = _get_dtype(tensor.data_type), _count_elements(tensor)
    return -(-count // 2) if dtype.name in _PACKED else count * dtype.itemsize


def _count_elements(tensor: onnx.TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count


def _get_dtype(elem_type: int) -> np.dtype[Any]:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type))


def _describe_value(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    axes = ", ".join(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)
    return f"{value.name} {_get_dtype(tensor.elem_type).name} ({axes})"
