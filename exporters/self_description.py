"""What a graph says of itself to whoever has the file alone: in its metadata, and in what viewers show of its tensors.

The manifest says the same to those who have the bundle. Servers, plain runtimes and Netron see the graph only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.bundle.manifest import METADATA_PREFIX, NEW_STATE_PREFIX, STATE_PREFIX
from flash_export.config import DECODE, EXTEND, FORWARD, PREFILL
from flash_export.interface import BATCH, PAST, Bins, Features, Lengths, Logits, Mask, Positions, TokenIds, Waveform
from flash_export.version import __version__

if TYPE_CHECKING:
    import onnx_ir as ir

    from flash_export.bundle.manifest import GraphSpec
    from flash_export.interface import Interface, TensorSpec

_PURPOSES = {
    FORWARD: "whole {unit}, from the first on",
    PREFILL: "a text in segments, each from the state of the one before",
    EXTEND: "1 to {window} tokens of each row, from any position",
    DECODE: "one token of each row, from any position",
}
_PADDING = {
    "exact": "on the right, where it changes nothing{mask}",
    "counted": "on the right{mask}; it counts in a divisor, as in the library that the weights come from",
    "refused": "refused: all rows of a batch have the same true length",
}


def describe_in_graph(
    model: ir.Model, name: str, graph: GraphSpec, interface: Interface, *, family: str, weights_sha256: str
) -> None:
    """Write into a graph what it is, what it takes, and what may follow what.

    Args:
        model: The traced graph, which is changed.
        name: Its name: ``forward``, ``prefill``, ``extend`` or ``decode``.
        graph: Its contract.
        interface: What the model takes and gives.
        family: The model's.
        weights_sha256: Hash of the weights that it was made of, which all graphs of a bundle share.
    """
    facts = describe_facts(name, graph, interface, family=family, weights_sha256=weights_sha256)
    model.metadata_props.update({f"{METADATA_PREFIX}{key}": value for key, value in facts.items()})
    model.doc_string = f"{name} of a {family} model ({interface.task}): {facts['purpose']}"
    values = {value.name: value for value in (*model.graph.inputs, *model.graph.outputs)}
    for spec in (*graph.inputs, *graph.outputs):
        values[spec.name].doc_string = describe_tensor(spec, interface)


def describe_facts(
    name: str, graph: GraphSpec, interface: Interface, *, family: str, weights_sha256: str
) -> dict[str, str]:
    """Return the metadata, by key; arguments are those of :func:`describe_in_graph`."""
    mask = f", if {interface.mask.name} says so" if interface.needs_mask and interface.mask else ""
    ranges = ", ".join(f"{axis} {bounds.min} to {bounds.max}" for axis, bounds in graph.axes.items())
    facts = {
        "version": __version__,
        "family": family,
        "task": interface.task,
        "graph": name,
        "purpose": _PURPOSES[name].format(unit=interface.unit, window=interface.window),
        "precision": graph.label,
        "ranges": ranges,
        "weights_sha256": weights_sha256,
    }
    if interface.window > 1:
        facts["chunk_size"] = str(interface.window)
    if name == FORWARD:
        return facts | {"padding": _PADDING[interface.padding].format(mask=mask)}
    facts["state"] = (
        f"zeros: a text that has not begun; {NEW_STATE_PREFIX}X of a run, of any graph of the bundle, is "
        f"{STATE_PREFIX}X of the next; rows are independent of each other"
    )
    if any(PAST in spec.shape for spec in graph.state_inputs):
        facts["growth"] = f"axis {PAST}: room for tokens of a row, at least for those before and those of this run"
    if name == PREFILL and (step := _find_step(graph)) > 1:
        facts["start"] = f"positions that are multiples of {step}; elsewhere the logits are NaN"
    if name != DECODE:
        facts["padding"] = "on the right, behind lengths, where it changes nothing"
    return facts


def describe_tensor(spec: TensorSpec, interface: Interface) -> str:
    """Say in a line what an input or output holds."""
    content = spec.content
    if spec.name.startswith(NEW_STATE_PREFIX):
        return f"the state after this run: {STATE_PREFIX}{spec.name.removeprefix(NEW_STATE_PREFIX)} of the next"
    if isinstance(content, TokenIds):
        return f"token ids, 0 to {content.vocab_size - 1}"
    if isinstance(content, Mask):
        return "1 for what is real, 0 for padding, which stands on the right"
    if isinstance(content, Lengths):
        return f"how many {interface.unit} of each row are real, {content.min} to {content.max}"
    if isinstance(content, Positions):
        step = f", in multiples of {content.step}" if content.step > 1 else ""
        return f"state: how many tokens each row has read before{step}"
    if isinstance(content, Waveform):
        return f"sound, {content.sample_rate} samples a second, 1 is full scale"
    if isinstance(content, Features):
        return "features, real numbers"
    if isinstance(content, Logits):
        return "logits over the vocabulary"
    if isinstance(content, Bins):
        return f"scores of positions, {content.per_pixel:g} a pixel"
    if spec.name.startswith(STATE_PREFIX):
        return f"state, by row ({BATCH} first); zeros at the beginning of a text"
    return ""


def _find_step(graph: GraphSpec) -> int:
    return next((spec.content.step for spec in graph.inputs if isinstance(spec.content, Positions)), 1)
