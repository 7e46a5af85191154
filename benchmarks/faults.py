"""Mistakes to plant in the forward graph of a good bundle, each small and named: what validation has to find.

A fault changes an exported graph as a wrong export, a careless optimiser or a broken compiler would. ``plant`` works on
a copy of a bundle and signs the change, as if the exporter had made the mistake.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from flash_export.bundle.bundle import MANIFEST_FILE, Bundle
from flash_export.files import hash_file, write_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BLOCK = 3
HIDDEN = -np.inf
CAUSAL, MASKED = "causal", "masked"
BOTH = CAUSAL, MASKED
HEADS = "quad_q", "lin_q", "quad_k", "lin_k"


@dataclass(frozen=True)
class Fault:
    """One mistake.

    Attributes:
        name: What went wrong.
        change: Makes the mistake in a graph.
        models: Which bundled models can have it.
        quantities: Where bisect may find it first, as ``BLOCK.QUANTITY`` without the block; empty: it has no one place.
        block: Block that it is in; None: outside of the blocks.
    """

    name: str
    change: Callable[[onnx.ModelProto], None]
    models: tuple[str, ...] = BOTH
    quantities: tuple[str, ...] = ()
    block: int | None = None


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


def find_initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    """Return the weight of a name."""
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def find_node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """Return the node of a name."""
    return next(node for node in model.graph.node if node.name == name)


def edit_weight(name: str, edit: Callable[[np.ndarray], np.ndarray], model: onnx.ModelProto) -> None:
    """Replace a weight by what ``edit`` makes of it."""
    tensor = find_initializer(model, name)
    values = edit(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, dtype=np.float32), name))


def replace_input(model: onnx.ModelProto, node: str, old: str, new: str) -> None:
    """Let a node read another value."""
    found = find_node(model, node)
    assert old in found.input, (node, old)
    found.input[:] = [new if name == old else name for name in found.input]


def insert_before(model: onnx.ModelProto, node: str, new: onnx.NodeProto) -> None:
    """Put a node before another."""
    position = next(index for index, found in enumerate(model.graph.node) if found.name == node)
    model.graph.node.insert(position, new)


def _weight(name: str, edit: Callable[[np.ndarray], np.ndarray]) -> Callable[[onnx.ModelProto], None]:
    return partial(edit_weight, name, edit)


def _block(name: str) -> str:
    return f"layers.{BLOCK}.{name}"


def _perturb_one(values: np.ndarray) -> np.ndarray:
    """Move one weight by as much as weights spread."""
    values.flat[values.size // 2] += values.std()
    return values


def _scale_row(row: int, factor: float, values: np.ndarray) -> np.ndarray:
    values[row] *= factor
    return values


def _show_next_token(bias: np.ndarray) -> np.ndarray:
    rows = np.arange(len(bias) - 1)
    bias[rows, rows + 1] = bias[rows, rows]
    return bias


def _hide_own_token(bias: np.ndarray) -> np.ndarray:
    np.fill_diagonal(bias, HIDDEN)
    return bias


def _shift_table(bias: np.ndarray) -> np.ndarray:
    """Move the relative positions by one, the hidden future staying hidden."""
    moved = np.roll(bias, 1, axis=0)
    moved[0] = bias[0]
    moved[bias == HIDDEN] = HIDDEN
    moved[(moved == HIDDEN) & (bias != HIDDEN)] = bias[(moved == HIDDEN) & (bias != HIDDEN)]
    return moved


def _swap_crossed_columns(gamma: np.ndarray) -> np.ndarray:
    """Rotate the other way round: the crossed columns change their sign."""
    qk_dim = gamma.shape[-1] * 2 // 3
    gamma[..., qk_dim:] *= -1
    return gamma


def _swap_pairs(weight: np.ndarray) -> np.ndarray:
    """Exchange the two columns that the first pair is rotated from, in the crossed part alone."""
    width = weight.shape[1]
    first, second = width - 32, width - 16
    weight[:, [first, second]] = weight[:, [second, first]]
    return weight


def _round_mantissa(bits: int, values: np.ndarray) -> np.ndarray:
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa * 2 ** (bits + 1)) / 2 ** (bits + 1), exponent)


def _round_all_weights(bits: int, model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2 and "bias" not in tensor.name:
            edit_weight(tensor.name, partial(_round_mantissa, bits), model)


def _swap_tokens(table: np.ndarray) -> np.ndarray:
    table[[101, 116]] = table[[116, 101]]
    return table


def _set_attribute(node: str, name: str, value: int, model: onnx.ModelProto) -> None:
    found = find_node(model, node)
    kept = [attribute for attribute in found.attribute if attribute.name != name]
    del found.attribute[:]
    found.attribute.extend([*kept, helper.make_attribute(name, value)])


def _remove_token_shift(model: onnx.ModelProto) -> None:
    for node in ("projection/MatMul_0", "projection/MatMul_1"):
        _keep_channel_order(model, f"layers.{BLOCK}.{node}")


def _keep_channel_order(model: onnx.ModelProto, node: str) -> None:
    """Let a projection read this token's channels alone, in the order that the shift would have put them in."""
    normed, moved = f"layers.{BLOCK}.norm/Div_0:0", f"layers.{BLOCK}/Reshape_1:0"
    dim = 192
    order = np.roll(np.arange(dim), dim // 2)
    name = f"{node}:unshifted"
    if not any(tensor.name == "unshifted_order" for tensor in model.graph.initializer):
        model.graph.initializer.append(numpy_helper.from_array(order.astype(np.int64), "unshifted_order"))
    insert_before(model, node, helper.make_node("Gather", [normed, "unshifted_order"], [name], axis=-1))
    replace_input(model, node, moved, name)


def _skip_residual(model: onnx.ModelProto) -> None:
    before = f"layers.{BLOCK - 1}/Add_2:0"
    node = find_node(model, f"layers.{BLOCK}/Add_2")
    node.input[:] = [f"layers.{BLOCK}/Add_1:0" if name == before else name for name in node.input]


def _forget_square(model: onnx.ModelProto) -> None:
    node = find_node(model, _block("quadratic/Mul_0"))
    node.op_type, node.input[:] = "Identity", node.input[:1]


def _forget_gate_activation(model: onnx.ModelProto) -> None:
    node = find_node(model, _block("projection/Mul_1"))
    node.op_type, node.input[:] = "Identity", node.input[:1]


def _drop_linear_branch(model: onnx.ModelProto) -> None:
    """Later chunks no longer hear of earlier ones."""
    node = find_node(model, f"layers.{BLOCK}/Add_0")
    node.op_type, node.input[:] = "Identity", node.input[:1]


def _start_positions_at_one(model: onnx.ModelProto) -> None:
    node = find_node(model, "embedding/Mul_0")
    model.graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), "one_position"))
    insert_before(model, node.name, helper.make_node("Add", [node.input[0], "one_position"], ["later_positions"]))
    node.input[0] = "later_positions"


def _swap_sine_and_cosine(model: onnx.ModelProto) -> None:
    node = find_node(model, "embedding/Concat_0")
    node.input[:] = list(reversed(node.input))


def _compute_in_half(value: str, node: str, model: onnx.ModelProto) -> None:
    """Send a value through fp16, as a half-precision accumulator would."""
    half, back = f"{value}:half", f"{value}:back"
    insert_before(model, node, helper.make_node("Cast", [value], [half], to=TensorProto.FLOAT16))
    insert_before(model, node, helper.make_node("Cast", [half], [back], to=TensorProto.FLOAT))
    replace_input(model, node, value, back)


def _overflow_half(model: onnx.ModelProto) -> None:
    """Let the scores leave the range of fp16: they are scaled up, sent through it and scaled back."""
    scores, node = _block("quadratic/MatMul_0:0"), _block("quadratic/Add_0")
    for name, factor in (("large", 2.0**24), ("small", 2.0**-24)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), name))
    chain = [
        helper.make_node("Mul", [scores, "large"], ["scaled"]),
        helper.make_node("Cast", ["scaled"], ["halved"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["halved"], ["widened"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["widened", "small"], ["overflowed"]),
    ]
    for new in chain:
        insert_before(model, node, new)
    replace_input(model, node, scores, "overflowed")


def _ignore_mask(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.input[:] = ["all_ones" if name == "attention_mask" else name for name in node.input]
    for name, value in (("nought", 0), ("unity", 1)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    model.graph.node.insert(0, helper.make_node("Add", ["no_mask", "unity"], ["all_ones"]))
    model.graph.node.insert(0, helper.make_node("Mul", ["attention_mask", "nought"], ["no_mask"]))


def _leak_values(model: onnx.ModelProto) -> None:
    """Values of padding are zeroed in all blocks but one."""
    node = find_node(model, f"layers.{BLOCK}/Mul_0")
    node.op_type, node.input[:] = "Identity", node.input[:1]


def _divide_by_padded_length(model: onnx.ModelProto) -> None:
    """The sum over a row is divided by the padded length of the batch."""
    node = find_node(model, "graph/Reciprocal_0")
    insert_before(model, node.name, helper.make_node("Cast", ["graph/Squeeze_0:0"], ["whole_length"], to=1))
    node.input[0] = "whole_length"


def _share_first_mask(model: onnx.ModelProto) -> None:
    """Every row gets the mask of the first one."""
    for name, value in (("row_start", [0]), ("row_end", [1]), ("row_axis", [0])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    node = find_node(model, "graph/Cast_1")
    first = helper.make_node("Slice", ["attention_mask", "row_start", "row_end", "row_axis"], ["first_mask"])
    spread = [
        helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
        helper.make_node("Expand", ["first_mask", "mask_shape"], ["spread_mask"]),
    ]
    for new in (first, *spread):
        insert_before(model, node.name, new)
    node.input[0] = "spread_mask"


def _bake_length(model: onnx.ModelProto) -> None:
    """The graph only takes the length that it was traced with."""
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[1].dim_value = 256


def _pad_one_chunk_too_few(model: onnx.ModelProto) -> None:
    """Texts are cut to whole chunks in place of being padded to them: no rounding up."""
    node = find_node(model, "graph/Add_0")
    node.op_type, node.input[:] = "Identity", ["graph/Squeeze_0:0"]


FAULTS = (
    Fault(
        "one weight of the values", _weight(_block("projection.value_weight"), _perturb_one), BOTH, ("value",), BLOCK
    ),
    Fault(
        "one weight of gates and queries",
        _weight(_block("projection.weight"), _perturb_one),
        BOTH,
        ("gate", *HEADS),
        BLOCK,
    ),
    Fault("one weight of the output", _weight(_block("out_weight"), _perturb_one), BOTH, ("out",), BLOCK),
    Fault("one bias of the output", _weight(_block("out_bias"), _perturb_one), BOTH, ("out",), BLOCK),
    Fault("bias table shifted", _weight(_block("quadratic.bias"), _shift_table), BOTH, ("weights",), BLOCK),
    Fault(
        "causal mask shows the next token",
        _weight(_block("quadratic.bias"), _show_next_token),
        (CAUSAL,),
        ("weights",),
        BLOCK,
    ),
    Fault(
        "causal mask hides the token itself",
        _weight(_block("quadratic.bias"), _hide_own_token),
        (CAUSAL,),
        ("weights",),
        BLOCK,
    ),
    Fault(
        "score divisor of another length",
        _weight(_block("heads.gamma"), partial(_scale_row, 0, 128 / 300)),
        BOTH,
        ("quad_q",),
        BLOCK,
    ),
    Fault(
        "key divisor of another length",
        _weight(_block("heads.gamma"), partial(_scale_row, 3, 128 / 300)),
        BOTH,
        ("lin_k",),
        BLOCK,
    ),
    Fault(
        "offset of a query lost", _weight(_block("heads.beta"), partial(_scale_row, 1, 0.0)), BOTH, ("lin_q",), BLOCK
    ),
    Fault("rotary pairs swapped", _weight(_block("projection.weight"), _swap_pairs), BOTH, HEADS, BLOCK),
    Fault("rotation the other way", _weight(_block("heads.gamma"), _swap_crossed_columns), BOTH, HEADS, BLOCK),
    Fault("rotary frequencies of another base", _weight("freqs", lambda f: f**1.01), BOTH, HEADS, 0),
    Fault("token shift missing", _remove_token_shift, BOTH, ("normed", "value"), BLOCK),
    Fault("residual missing", _skip_residual, BOTH, ("out",), BLOCK),
    Fault("square of relu missing", _forget_square, BOTH, ("weights",), BLOCK),
    Fault("gate without activation", _forget_gate_activation, BOTH, ("gate", *HEADS), BLOCK),
    Fault("linear branch missing", _drop_linear_branch, BOTH, ("linear", "out"), BLOCK),
    Fault(
        "prefix includes its own chunk",
        partial(_set_attribute, _block("linear/CumSum_0"), "exclusive", 0),
        (CAUSAL,),
        ("kv", "linear"),
        BLOCK,
    ),
    Fault(
        "prefix from the end",
        partial(_set_attribute, _block("linear/CumSum_0"), "reverse", 1),
        (CAUSAL,),
        ("kv", "linear"),
        BLOCK,
    ),
    Fault("positions start at one", _start_positions_at_one, BOTH, ("embedding",)),
    Fault("sine and cosine swapped", _swap_sine_and_cosine, BOTH, ("embedding",)),
    Fault("two tokens swapped", _weight("embedding.table", _swap_tokens), BOTH, ("embedding",)),
    Fault("bias of the head lost", _weight("head.bias", lambda bias: 0 * bias), BOTH, ("logits",)),
    Fault("norm gain off by 1 %", _weight("head.norm.weight", lambda gain: 1.01 * gain), BOTH, ("logits",)),
    Fault("weights rounded to fp16", partial(_round_all_weights, 10), BOTH),
    Fault("weights rounded to bf16", partial(_round_all_weights, 7), BOTH),
    Fault("weights rounded to 14 bits of mantissa", partial(_round_all_weights, 14), BOTH),
    Fault(
        "gates computed in fp16",
        partial(_compute_in_half, _block("projection/Mul_1:0"), f"layers.{BLOCK}/Split_0"),
        BOTH,
        ("gate", *HEADS),
        BLOCK,
    ),
    Fault("scores overflow fp16", _overflow_half, BOTH, ("weights",), BLOCK),
    Fault("mask ignored", _ignore_mask, (MASKED,)),
    Fault("values of padding leak", _leak_values, (MASKED,), ("value", "quadratic", "kv"), BLOCK),
    Fault("sum divided by the padded length", _divide_by_padded_length, (MASKED,), ("kv", "linear"), 0),
    Fault("mask of the first row for all", _share_first_mask, (MASKED,)),
    Fault("length baked in", _bake_length, BOTH),
    Fault("lengths rounded down to whole chunks", _pad_one_chunk_too_few, BOTH),
)
