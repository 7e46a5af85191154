"""Mistakes to plant in the forward graph of a good bundle, each small and named: what validation has to find.

A fault changes an exported graph as a wrong export, a careless optimiser or a broken compiler would. ``plant`` works on
a copy of a bundle and signs the change, as if the exporter had made the mistake.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.helper import make_attribute, make_node

from flash_export import Bundle, ExportOptions, export_onnx
from flash_export.bundle.bundle import MANIFEST_FILE
from flash_export.config import FORWARD
from flash_export.files import hash_file, write_file
from harness.models import ASSETS, BUNDLED

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    Change = Callable[[onnx.ModelProto], None]
    Edit = Callable[[np.ndarray], object]

BLOCK = 3
PREFIX = f"layers.{BLOCK}"
HIDDEN = -np.inf
CAUSAL, MASKED = BOTH = tuple(name.removeprefix("byte-") for name in BUNDLED)
QK_DIM, ROTARY_DIM = 64, 32
# The columns of the first pair that turns together.
PAIR = np.s_[:, -QK_DIM], np.s_[:, ROTARY_DIM // 2 - QK_DIM]
HEADS = "quad_q", "lin_q", "quad_k", "lin_k"
QUICK_ONLY = "one weight of the values"


@dataclass(frozen=True)
class Fault:
    """One mistake."""

    name: str
    quantities: tuple[str, ...]  # where bisect may find it first, without the block; empty: it has no one place
    change: Change  # makes the mistake in a graph
    models: tuple[str, ...] = BOTH  # which bundled models can have it
    block: int | None = BLOCK  # that it is in; None: outside of the blocks

    @property
    def places(self) -> tuple[str, ...]:
        """Where bisect may find it first, as ``layers.3.kv``."""
        prefix = "" if self.block is None else f"layers.{self.block}."
        return tuple(f"{prefix}{quantity}" for quantity in self.quantities)


def plant_faults(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Fault, Bundle]]:
    """Yield the bundled models with each fault that the command line asks for; a bundle is gone when the next comes."""
    only = QUICK_ONLY if options.quick else options.only
    for model in BOTH[:1] if options.quick else BOTH:
        source = ASSETS / f"byte-{model}"
        bundle = export_onnx(source, folder / model, options=ExportOptions(graphs=(FORWARD,)))
        for index, fault in enumerate(fault for fault in FAULTS if model in fault.models and only in fault.name):
            print(f"{model}: {fault.name} ...", flush=True)
            with tempfile.TemporaryDirectory(dir=folder) as copy:
                yield model, fault, plant(fault, bundle, Path(copy) / str(index))


def plant(fault: Fault, bundle: Bundle, folder: Path) -> Bundle:
    """Copy a bundle to ``folder`` and make the mistake in its forward graph."""
    shutil.copytree(bundle.path, folder)
    path = folder / bundle.get_graph().file
    model = onnx.load(path)
    fault.change(model)
    onnx.save(model, path)
    files = {name: hash_file(folder / name) for name in bundle.manifest.files}
    manifest = dataclasses.replace(bundle.manifest, files=files)
    write_file(folder / MANIFEST_FILE, manifest.to_json().encode())
    return Bundle.open(folder)


def find_node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """Return the node of a name."""
    return next(node for node in model.graph.node if node.name == name)


def change_weight(name: str, edit: Edit) -> Change:
    """Edit a weight in place."""

    def change(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        values = numpy_helper.to_array(tensor).copy()
        edit(values)
        tensor.CopyFrom(numpy_helper.from_array(values, name))

    return change


def _block_weight(name: str, edit: Edit) -> Change:
    return change_weight(f"{PREFIX}.{name}", edit)


def _add_constants(model: onnx.ModelProto, dtype: type[np.generic], **constants: Any) -> None:
    arrays = {name: np.array(value, dtype) for name, value in constants.items()}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())


def replace_input(node: onnx.NodeProto, old: str, new: str) -> None:
    """Let a node read another value."""
    assert old in node.input, (node.name, old)
    node.input[:] = [new if name == old else name for name in node.input]


def insert_before(model: onnx.ModelProto, name: str, old: str, *chain: onnx.NodeProto) -> None:
    """Put nodes before another, which then reads what the last of them gives in place of ``old``."""
    node = find_node(model, name)
    position = list(model.graph.node).index(node)
    replace_input(node, old, chain[-1].output[0])
    for new in reversed(chain):
        model.graph.node.insert(position, new)


def _make_casts(value: str) -> tuple[onnx.NodeProto, ...]:
    """Return the nodes that send a value through fp16."""
    half, back = f"{value}:half", f"{value}:back"
    down = make_node("Cast", [value], [half], to=TensorProto.FLOAT16)
    return down, make_node("Cast", [half], [back], to=TensorProto.FLOAT)


def bypass(node: str, source: str = "") -> Change:
    """Let a node pass on a value, by default its first input."""

    def change(model: onnx.ModelProto) -> None:
        found = find_node(model, node)
        found.op_type, found.input[:] = "Identity", [source or found.input[0]]

    return change


def _set_cumsum(name: str, value: int) -> Change:
    """Set an attribute of the sum over chunks."""

    def change(model: onnx.ModelProto) -> None:
        node = find_node(model, f"{PREFIX}.linear/CumSum_0")
        kept = [attribute for attribute in node.attribute if attribute.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, make_attribute(name, value)])

    return change


def scale(index: Any, factor: float) -> Edit:
    """Multiply what stands at an index."""

    def edit(values: np.ndarray) -> None:
        values[index] *= factor

    return edit


def swap(one: Any, other: Any) -> Edit:
    """Put what stands at two indices in each other's place."""

    def edit(values: np.ndarray) -> None:
        values[one], values[other] = values[other].copy(), values[one].copy()

    return edit


def perturb_one(values: np.ndarray) -> None:
    """Move one weight by as much as weights spread."""
    values.flat[values.size // 2] += values.std()


def _shift_table(bias: np.ndarray) -> None:
    """Move the relative positions by one, the hidden future staying hidden."""
    moved = np.roll(bias, 1, axis=0)
    moved[0] = bias[0]
    np.copyto(bias, moved, where=(bias != HIDDEN) & (moved != HIDDEN))


def _round_weights(bits: int) -> Change:
    """Round all weights to so many bits of mantissa."""

    def edit(values: np.ndarray) -> None:
        mantissa, exponent = np.frexp(values)
        values[...] = np.ldexp(np.round(mantissa * 2 ** (bits + 1)) / 2 ** (bits + 1), exponent)

    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2 and "bias" not in tensor.name:
                change_weight(tensor.name, edit)(model)

    return change


def _remove_token_shift(model: onnx.ModelProto) -> None:
    """Let the projections read this token's channels alone, in the order that the shift would have put them in."""
    dim = 192
    _add_constants(model, np.int64, unshifted_order=np.roll(np.arange(dim), dim // 2))
    for node in (f"{PREFIX}.projection/MatMul_0", f"{PREFIX}.projection/MatMul_1"):
        gather = make_node("Gather", [f"{PREFIX}.norm/Div_0:0", "unshifted_order"], [f"{node}:unshifted"], axis=-1)
        insert_before(model, node, f"{PREFIX}/Reshape_1:0", gather)


def _turn_back(model: onnx.ModelProto) -> None:
    """Rotate the heads by the negative angle."""
    crossed = f"{PREFIX}.heads/MatMul_0:0"
    insert_before(model, f"{PREFIX}.heads/Mul_1", crossed, make_node("Neg", [crossed], [f"{crossed}:back"]))


def _change_base(model: onnx.ModelProto) -> None:
    for name in ("rotary.cos_freqs", "rotary.sin_freqs"):
        change_weight(name, lambda freqs: np.power(freqs, 1.01, out=freqs))(model)


def _skip_residual(model: onnx.ModelProto) -> None:
    replace_input(find_node(model, f"{PREFIX}/Add_2"), f"layers.{BLOCK - 1}/Add_2:0", f"{PREFIX}/Add_1:0")


def _start_positions_at_one(model: onnx.ModelProto) -> None:
    node = find_node(model, "embedding/Mul_0")
    positions = node.input[0]
    _add_constants(model, np.float32, one_position=1)
    later = make_node("Add", [positions, "one_position"], ["later_positions"])
    insert_before(model, node.name, positions, later)


def _swap_sine_and_cosine(model: onnx.ModelProto) -> None:
    node = find_node(model, "embedding/Concat_0")
    node.input[:] = list(reversed(node.input))


def _round_gates(model: onnx.ModelProto) -> None:
    """Send the gates through fp16, as a half-precision accumulator would."""
    gates = f"{PREFIX}.projection/Mul_1:0"
    insert_before(model, f"{PREFIX}/Split_0", gates, *_make_casts(gates))


def _overflow_half(model: onnx.ModelProto) -> None:
    """Let the scores leave the range of fp16: they are scaled up, sent through it and scaled back."""
    scores = f"{PREFIX}.quadratic/MatMul_0:0"
    _add_constants(model, np.float32, large=2.0**24, small=2.0**-24)
    up, (down, back) = make_node("Mul", [scores, "large"], ["scaled"]), _make_casts("scaled")
    small = make_node("Mul", [back.output[0], "small"], ["overflowed"])
    insert_before(model, f"{PREFIX}.quadratic/Add_0", scores, up, down, back, small)


def _ignore_mask(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.input[:] = ["all_ones" if name == "attention_mask" else name for name in node.input]
    _add_constants(model, np.int64, nought=0, unity=1)
    model.graph.node.insert(0, make_node("Add", ["no_mask", "unity"], ["all_ones"]))
    model.graph.node.insert(0, make_node("Mul", ["attention_mask", "nought"], ["no_mask"]))


def _divide_by_padded_length(model: onnx.ModelProto) -> None:
    """Divide the sum over a row by the padded length of the batch."""
    node = find_node(model, "graph/Reciprocal_0")
    whole = make_node("Cast", ["graph/Squeeze_0:0"], ["whole_length"], to=TensorProto.FLOAT)
    insert_before(model, node.name, node.input[0], whole)


def _share_first_mask(model: onnx.ModelProto) -> None:
    """Give every row the mask of the first one."""
    _add_constants(model, np.int64, row_start=[0], row_end=[1], row_axis=[0])
    first = make_node("Slice", ["attention_mask", "row_start", "row_end", "row_axis"], ["first_mask"])
    shape = make_node("Shape", ["attention_mask"], ["mask_shape"])
    spread = make_node("Expand", ["first_mask", "mask_shape"], ["spread_mask"])
    reader = next(node for node in model.graph.node if node.op_type == "Gather" and "attention_mask" in node.input)
    insert_before(model, reader.name, "attention_mask", first, shape, spread)


def _bake_length(model: onnx.ModelProto) -> None:
    """Take only the length that the graph was traced with."""
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[1].dim_value = 256


FAULTS = (
    Fault("one weight of the values", ("value",), _block_weight("projection.value_weight", perturb_one)),
    Fault("one weight of gates and queries", ("gate", *HEADS), _block_weight("projection.weight", perturb_one)),
    Fault("one weight of the output", ("out",), _block_weight("out_weight", perturb_one)),
    Fault("one bias of the output", ("out",), _block_weight("out_bias", perturb_one)),
    Fault("bias table shifted", ("weights",), _block_weight("quadratic.bias", _shift_table)),
    Fault(
        "causal mask shows the next token",
        ("weights",),
        _block_weight("quadratic.bias", lambda bias: np.fill_diagonal(bias[:, 1:], bias.diagonal())),
        (CAUSAL,),
    ),
    Fault(
        "causal mask hides the token itself",
        ("weights",),
        _block_weight("quadratic.bias", lambda bias: np.fill_diagonal(bias, HIDDEN)),
        (CAUSAL,),
    ),
    Fault("score divisor of another length", ("quad_q",), _block_weight("heads.gamma", scale(0, 128 / 300))),
    Fault("key divisor of another length", ("lin_k",), _block_weight("heads.gamma", scale(3, 128 / 300))),
    Fault("offset of a query lost", ("lin_q",), _block_weight("heads.beta", scale(1, 0.0))),
    Fault("rotary pairs swapped", HEADS, _block_weight("projection.weight", swap(*PAIR))),
    Fault("rotation the other way", HEADS, _turn_back),
    Fault("rotary frequencies of another base", HEADS, _change_base, block=0),
    Fault("token shift missing", ("normed", "value"), _remove_token_shift),
    Fault("residual missing", ("out",), _skip_residual),
    Fault("square of relu missing", ("weights",), bypass(f"{PREFIX}.quadratic/Mul_0")),
    Fault("gate without activation", ("gate", *HEADS), bypass(f"{PREFIX}.projection/Mul_1")),
    Fault("linear branch missing", ("linear", "out"), bypass(f"{PREFIX}/Add_0")),
    Fault("prefix includes its own chunk", ("kv", "linear"), _set_cumsum("exclusive", 0), (CAUSAL,)),
    Fault("prefix from the end", ("kv", "linear"), _set_cumsum("reverse", 1), (CAUSAL,)),
    Fault("positions start at one", ("embedding",), _start_positions_at_one, block=None),
    Fault("sine and cosine swapped", ("embedding",), _swap_sine_and_cosine, block=None),
    Fault("two tokens swapped", ("embedding",), change_weight("embedding.table", swap(101, 116)), block=None),
    Fault("bias of the head lost", ("logits",), change_weight("head.bias", scale(..., 0)), block=None),
    Fault("norm gain off by 1 %", ("logits",), change_weight("head.norm.weight", scale(..., 1.01)), block=None),
    Fault("weights rounded to fp16", (), _round_weights(10)),
    Fault("weights rounded to bf16", (), _round_weights(7)),
    Fault("weights rounded to 14 bits of mantissa", (), _round_weights(14)),
    Fault("gates computed in fp16", ("gate", *HEADS), _round_gates),
    Fault("scores overflow fp16", ("weights",), _overflow_half),
    Fault("mask ignored", (), _ignore_mask, (MASKED,)),
    Fault("values of padding leak", ("value", "quadratic", "kv"), bypass(f"{PREFIX}/Mul_0"), (MASKED,)),
    Fault("sum divided by the padded length", ("kv", "linear"), _divide_by_padded_length, (MASKED,), block=0),
    Fault("mask of the first row for all", (), _share_first_mask, (MASKED,)),
    Fault("length baked in", (), _bake_length),
    Fault("lengths rounded down to whole chunks", (), bypass("graph/Add_0", "graph/Squeeze_0:0")),
)
