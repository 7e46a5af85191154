"""Mistakes to plant in the graphs of multi-head models: one for each part of a block, and of each kind of attention.

They are made in the second block of a model of at least two; widths are read from the graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import numpy_helper
from onnx.helper import make_node

from harness.faults import (
    Fault,
    bypass,
    change_weight,
    find_node,
    insert_before,
    perturb_one,
    replace_input,
    scale,
    swap,
)

if TYPE_CHECKING:
    import onnx

    from harness.faults import Change, Edit

BLOCK = 1
PREFIX = f"layers.{BLOCK}"
BLOCK_SPARSE, CAUSAL_CHUNKS = "bigbird", "causal mc_tfm"
TRANSFORMER, PERFORMER, LINFORMER, LONGFORMER = "transformer++", "performer", "linformer", "longformer"
ALL = (TRANSFORMER, CAUSAL_CHUNKS, PERFORMER, LINFORMER, LONGFORMER, BLOCK_SPARSE)
ROTARY = (TRANSFORMER, CAUSAL_CHUNKS)
NUM_HEADS = 3


def change_block(name: str, edit: Edit) -> Change:
    """Edit a weight of the block."""
    return change_weight(f"{PREFIX}.{name}", edit)


def change_shared(name: str, edit: Edit) -> Change:
    """Edit a table that blocks share, and that has the name of the first."""
    return change_weight(f"layers.0.{name}", edit)


def _scale_one_head(values: np.ndarray) -> None:
    """Divide the queries of the first head by the square root of another width."""
    values[..., : values.shape[-1] // NUM_HEADS] *= 0.5**0.5


def _swap_heads(values: np.ndarray) -> None:
    """Take the values of the first head for those of the second, and the other way round."""
    width = values.shape[-1] // NUM_HEADS
    swap(np.s_[:, :width], np.s_[:, width : 2 * width])(values)


def _turn_back(model: onnx.ModelProto) -> None:
    """Turn the queries by the negative angle."""
    crossed = f"{PREFIX}.turner/MatMul_0:0"
    insert_before(model, f"{PREFIX}.turner/Mul_0", crossed, make_node("Neg", [crossed], [f"{crossed}:back"]))


def _skip_residual(model: onnx.ModelProto) -> None:
    """Leave the input of the block out of what its attention gives."""
    node = find_node(model, f"{PREFIX}/Add_0")
    mixed = next(one for one in node.input if one.startswith(f"{PREFIX}.out"))
    nothing = "nothing"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), nothing))
    (other,) = (one for one in node.input if one != mixed)
    replace_input(node, other, nothing)


def _show_next(table: np.ndarray) -> None:
    """Let each token of a chunk see the one after it."""
    np.fill_diagonal(table[:, 1:], 0)


def _widen_window(table: np.ndarray) -> None:
    """Let each token see one more key to the right."""
    table[:, 1:][table[:, :-1] == 0] = 0


def _draw_other(blocks: np.ndarray) -> None:
    """Let the fifth block see another one than was drawn for it."""
    free = set(range(1, 8)) - {3, 4, 5} - set(blocks[4].astype(int).tolist())
    blocks[4, 0] = min(free)


FAULTS = (
    Fault(
        "queries of one head scaled by another width", ("q",), change_block("query.weight", _scale_one_head), ALL, BLOCK
    ),
    Fault("queries turned the other way", ("q",), _turn_back, ROTARY, BLOCK),
    Fault("one weight of the keys", ("k",), change_block("key.weight", perturb_one), ALL, BLOCK),
    Fault("values of two heads swapped", ("value",), change_block("value.weight", _swap_heads), ALL, BLOCK),
    Fault("one weight of the output", ("attended",), change_block("out.weight", perturb_one), ALL, BLOCK),
    Fault("residual missing", ("attended",), _skip_residual, ALL, BLOCK),
    Fault("feed-forward layer without gate", ("hidden",), bypass(f"{PREFIX}.feed_forward/Mul_1"), ROTARY, BLOCK),
    Fault(
        "one bias of the hidden channels", ("hidden",), change_block("feed_forward.value.bias", perturb_one), ALL, BLOCK
    ),
    Fault(
        "one weight of the feed-forward layer",
        ("out",),
        change_block("feed_forward.out.weight", perturb_one),
        ALL,
        BLOCK,
    ),
    Fault("hidden future visible", ("mixed",), bypass(f"{PREFIX}.attention/Add_0"), (TRANSFORMER,), BLOCK),
    Fault(
        "next token of a chunk visible", ("mixed",), change_shared("attention.future", _show_next), (CAUSAL_CHUNKS,), 0
    ),
    Fault(
        "linear keys scaled", ("mixed",), change_block("attention.key_gamma", scale(0, 1.01)), (CAUSAL_CHUNKS,), BLOCK
    ),
    Fault(
        "one direction of the features",
        ("mixed",),
        change_block("attention.projection", perturb_one),
        (PERFORMER,),
        BLOCK,
    ),
    Fault(
        "projection of two positions swapped",
        ("mixed",),
        change_block("attention.proj_k", swap(0, 1)),
        (LINFORMER,),
        BLOCK,
    ),
    Fault("window one token too wide", ("mixed",), change_shared("attention.window", _widen_window), (LONGFORMER,), 0),
    Fault(
        "a drawn block changed",
        ("mixed",),
        change_block("attention.random_blocks", _draw_other),
        (BLOCK_SPARSE,),
        BLOCK,
    ),
)
