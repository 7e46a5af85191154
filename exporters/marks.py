"""Marks: where a lowered model computes a quantity that the reference model computes too.

``mark(x, "kv", ...)`` in a lowered module says what x is. The graph that is exported holds no trace of it: a mark
passes its input on, and what it says is written into ``probes.json``.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import onnx
import torch
from onnxscript import values

from flash_export.exporters.scopes import read_scope
from flash_export.probes import Probe

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir
    from torch import Tensor

MARK_DOMAIN, MARK_TYPE = "flash_export.marks", "Mark"
_ATTRIBUTES = {
    "quantity": onnx.defs.OpSchema.AttrType.STRING,
    "scale": onnx.defs.OpSchema.AttrType.FLOAT,
    "order": onnx.defs.OpSchema.AttrType.STRING,
    "axis": onnx.defs.OpSchema.AttrType.INT,
    "length_power": onnx.defs.OpSchema.AttrType.INT,
}
_SCHEMA = onnx.defs.OpSchema(
    MARK_TYPE,
    MARK_DOMAIN,
    1,
    inputs=[onnx.defs.OpSchema.FormalParameter("x", "T")],
    outputs=[onnx.defs.OpSchema.FormalParameter("y", "T")],
    type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")],
    attributes=[onnx.defs.OpSchema.Attribute(name, kind) for name, kind in _ATTRIBUTES.items()],
)
_record_mark: Any = values.Op(values.Opset(MARK_DOMAIN, 1), MARK_TYPE, _SCHEMA)


@torch.library.custom_op("flash_export::mark", mutates_args=())
def mark(
    x: torch.Tensor, quantity: str, scale: float = 1.0, order: str = "", axis: int = -1, length_power: int = 0
) -> torch.Tensor:
    """Return x, and say in a traced graph that it is this quantity; the arguments are those of :class:`Probe`."""
    return x.clone()


@mark.register_fake
def _(x: Tensor, quantity: str, scale: float = 1.0, order: str = "", axis: int = -1, length_power: int = 0) -> Tensor:
    return torch.empty_like(x)


def _spell_mark(
    x: Any, quantity: str, scale: float = 1.0, order: str = "", axis: int = -1, length_power: int = 0
) -> Any:
    return _record_mark(x, quantity=quantity, scale=scale, order=order, axis=axis, length_power=length_power)


MARK_TRANSLATIONS: dict[Any, Callable[..., Any]] = {torch.ops.flash_export.mark.default: _spell_mark}


@dataclass(frozen=True)
class MarkedValue:
    """A value of a graph, and the probe that it will be once it has its final name."""

    value: ir.Value
    probe: Probe

    def name_probe(self) -> Probe:
        """Return the probe with the value's name as it is now."""
        return dataclasses.replace(self.probe, tensor=str(self.value.name))


def set_marks_aside(graph: ir.Graph) -> None:
    """Make the marks onlookers of what they mark, so that simplification sees the graph as it will be.

    As outputs of the graph they are kept; and whoever replaces a value also replaces it in the mark.
    """
    for node in [node for node in graph if _is_mark(node)]:
        marked, output = cast("ir.Value", node.inputs[0]), node.outputs[0]
        if output.is_graph_output():  # what the model returns is marked too
            marked.name, output.name = output.name, f"{output.name}/marked"
        output.replace_all_uses_with(marked, replace_graph_outputs=True)
        graph.outputs.append(output)


def take_marks(model: ir.Model) -> list[MarkedValue]:
    """Remove the marks from a graph and return what they marked.

    Raises:
        RuntimeError: Nothing but its mark uses a value: simplification found a way around it.
    """
    graph, found = model.graph, []
    for node in [node for node in graph if _is_mark(node)]:
        (value,), (output,) = node.inputs, node.outputs
        graph.outputs.remove(output)
        graph.remove(node, safe=True)
        probe = _read_probe(node)
        if value is None or not (value.uses() or value.is_graph_output()):
            raise RuntimeError(f"{probe.name} is computed, but nothing in the graph uses it")
        found.append(MarkedValue(value, probe))
    model.opset_imports.pop(MARK_DOMAIN, None)
    return found


def _is_mark(node: ir.Node) -> bool:
    return node.domain == MARK_DOMAIN


def _read_probe(node: ir.Node) -> Probe:
    attributes = node.attributes
    block = re.match(r"layers\.\d+\.?", f"{read_scope(node)}.")
    return Probe(
        name=f"{block[0] if block else ''}{attributes['quantity'].as_string()}",
        tensor="",
        scale=attributes["scale"].as_float(),
        order=attributes["order"].as_string() or None,
        axis=attributes["axis"].as_int(),
        length_power=attributes["length_power"].as_int(),
    )
