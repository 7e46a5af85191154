"""What TensorRT's ONNX parser complains about, in words: which node, which operator, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flash_export.errors import BundleError
from flash_export.graph_files import read_graph
from flash_export.runtime.trt_log import clean_message

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

MAX_LISTED = 3
_CONTROL_FLOW = ("If", "Loop", "Scan")
_NO_REASON = ("", "false")
_QUANTIZATION = ("DynamicQuantizeLinear", "MatMulInteger", "QuantizeLinear")


@dataclass(frozen=True)
class ParserComplaint:
    """One complaint: the node, its operator with the domain unless that is ``ai.onnx``, and TensorRT's reason."""

    node: str
    op_type: str
    code: str
    reason: str

    def __str__(self) -> str:
        """Return ``node 'NAME' (OP): REASON``."""
        reason = f"{self.code}: {self.reason}" if self.reason not in _NO_REASON else self.code
        return f"node {self.node} ({self.op_type}): {reason}" if self.op_type else reason


def read_complaints(parser: Any, path: Path) -> tuple[ParserComplaint, ...]:
    """Return every complaint of a TensorRT parser about the ONNX file at ``path``."""
    nodes = _load_nodes(path)
    return tuple(_read_complaint(parser.get_error(index), nodes) for index in range(parser.num_errors))


def format_complaints(complaints: tuple[ParserComplaint, ...]) -> str:
    """Return the complaints and the cure in one line."""
    listed = "; ".join(map(str, complaints[:MAX_LISTED]))
    more = len(complaints) - MAX_LISTED
    return f"{listed}{f'; and {more} more' if more > 0 else ''}; {_choose_cure(complaints)}"


def _load_nodes(path: Path) -> list[onnx.NodeProto]:
    try:
        return list(read_graph(path).graph.node)
    except BundleError:
        return []


def _read_complaint(error: Any, nodes: list[onnx.NodeProto]) -> ParserComplaint:
    name, op_type, index = error.node_name(), error.node_operator(), error.node()
    # The index counts the nodes of the graph that holds the node, which may be a subgraph.
    if 0 <= index < len(nodes) and nodes[index].op_type == op_type and nodes[index].name == name:
        node = nodes[index]
        name = repr(name) if name else f"number {index}, which makes {', '.join(map(repr, node.output))}"
        op_type = f"{node.domain}::{op_type}" if node.domain not in ("", "ai.onnx") else op_type
    else:
        name = repr(name) if name else f"number {index}"
    return ParserComplaint(name, op_type, error.code().name, clean_message(error.desc()))


def _choose_cure(complaints: tuple[ParserComplaint, ...]) -> str:
    if any("::" in complaint.op_type for complaint in complaints):
        return "TensorRT has no custom operators; express them in ai.onnx ones, as 'flash-export onnx' does"
    if any(complaint.op_type in _CONTROL_FLOW for complaint in complaints):
        return "export a graph without control flow, as 'flash-export onnx' does"
    if any(complaint.op_type in _QUANTIZATION for complaint in complaints):
        return (
            "TensorRT takes signed whole numbers with scales that are known beforehand; use "
            "'flash-export quantize --for tensorrt'"
        )
    if any(complaint.op_type for complaint in complaints):
        return "replace the operators that TensorRT lacks, or export the checkpoint with 'flash-export onnx'"
    return "export the bundle again"
