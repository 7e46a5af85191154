"""The few operations whose ONNX spelling we choose ourselves, because the exporter's would depend on the length.

Each is a PyTorch custom op with an eager meaning, so that a lowered model runs and can be tested without ONNX, and
a translation to ``ai.onnx`` nodes with constant arguments. No trace of the op is left in the graph.

Axes: b batch, n padded sequence, g chunk, c position in a chunk, d width, k axes that an index is for, h head.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from onnxscript import opset18, opset20, opset23

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

op: Any = opset18  # what torch.onnx translates to, before it converts to the opset that was asked for


@torch.library.custom_op("flash_export::reshape", mutates_args=())
def reshape(x: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Reshape as ONNX does: 0 keeps the size of that axis, -1 takes what is left. No shape is computed at run time."""
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]).clone()


@reshape.register_fake
def _(x: Tensor, sizes: list[int]) -> Tensor:
    kept = {axis: x.shape[axis] for axis, size in enumerate(sizes) if size == 0}
    num_left = math.prod(size for axis, size in enumerate(x.shape) if axis not in kept)
    rest = num_left // math.prod(size for size in sizes if size > 0)
    return x.new_empty([kept.get(axis, rest if size == -1 else size) for axis, size in enumerate(sizes)])


def _spell_reshape(x: Any, sizes: list[int]) -> Any:
    return op.Reshape(x, op.Constant(value_ints=sizes))


@torch.library.custom_op("flash_export::shift_half_token", mutates_args=())
def shift_half_token(x: torch.Tensor, places: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Move the flattened sequence of ``(b, ..., d)`` half a token to the right.

    If a token is ``[passing | shifted]`` channels, position i becomes ``[shifted of i - 1 | passing of i]``.

    Args:
        x: The tokens; one of the axes between batch and channels may have any size.
        places: The numbers from 0 to that of half tokens.
        before: What comes in from the left, ``(b, 1, d / 2)``.
    """
    halves = x.reshape(x.shape[0], -1, x.shape[-1] // 2)
    return torch.cat((before, halves), dim=1).index_select(1, places.long()).reshape(x.shape)


@shift_half_token.register_fake
def _(x: Tensor, places: Tensor, before: Tensor) -> Tensor:
    return torch.empty_like(x)


def _spell_shift_half_token(x: Any, places: Any, before: Any) -> Any:
    # A Pad by [1, -1] would do, but ONNX's reference evaluator and tract lack negative numbers, and onnxruntime's
    # symbolic shape inference lacks axes. A Pad of zeros and a Slice of the end would do too, but their sizes are 6 and
    # 30 layers in TensorRT.
    longer = op.Concat(before, _spell_reshape(x, [0, -1, x.shape[-1] // 2]), axis=1)
    sizes = [size if isinstance(size, int) else -1 for size in x.shape[1:]]
    return _spell_reshape(op.Gather(longer, places, axis=1), [0, *sizes])


@torch.library.custom_op("flash_export::sum_earlier_chunks", mutates_args=())
def sum_earlier_chunks(x: torch.Tensor) -> torch.Tensor:
    """Return, for each chunk of ``(b, g, ...)``, the sum over all chunks before it."""
    return torch.cat((torch.zeros_like(x[:, :1]), x.cumsum(dim=1)[:, :-1]), dim=1)


@sum_earlier_chunks.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _spell_sum_earlier_chunks(x: Any) -> Any:
    return op.CumSum(x, op.Constant(value_int=1), exclusive=1)


@torch.library.custom_op("flash_export::gather", mutates_args=())
def gather(x: torch.Tensor, index: torch.Tensor, axis: int = 0) -> torch.Tensor:
    """Return what stands at these places of an axis, for which the axes of the index come to stand.

    An index of int32 is half the memory; one of two axes cuts a sequence into chunks, in one node.
    """
    taken = x.index_select(axis, index.reshape(-1).long())
    return taken.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]).clone()


@gather.register_fake
def _(x: Tensor, index: Tensor, axis: int = 0) -> Tensor:
    return x.new_empty((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _spell_gather(x: Any, index: Any, axis: int = 0) -> Any:
    return op.Gather(x, index, axis=axis)


@torch.library.custom_op("flash_export::take_at", mutates_args=())
def take_at(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return ``x[row, i, ...]`` of ``(b, m, ...)`` for each index (row, i, ...) of ``(..., k)``."""
    return x[tuple(index.unbind(-1))]


@take_at.register_fake
def _(x: Tensor, index: Tensor) -> Tensor:
    return x.new_empty((*index.shape[:-1], *x.shape[index.shape[-1] :]))


def _spell_take_at(x: Any, index: Any) -> Any:
    return op.GatherND(x, index)


@torch.library.custom_op("flash_export::put_at", mutates_args=())
def put_at(x: torch.Tensor, index: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return x with ``x[row, i, ...]`` replaced by the value of each index (row, i, ...) of ``(..., k)``."""
    return x.index_put(tuple(index.unbind(-1)), values)


@put_at.register_fake
def _(x: Tensor, index: Tensor, values: Tensor) -> Tensor:
    return torch.empty_like(x)


def _spell_put_at(x: Any, index: Any, values: Any) -> Any:
    return op.ScatterND(x, index, values)


@torch.library.custom_op("flash_export::find_largest", mutates_args=())
def find_largest(x: torch.Tensor) -> torch.Tensor:
    """Return the largest of the last axis of ``(b, n, h, d)``, as ``(b, n, h, 1)``."""
    return x.amax(dim=-1, keepdim=True)


@find_largest.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], 1))


def _spell_find_largest(x: Any) -> Any:
    # A ReduceMax would do, but onnxruntime's symbolic shape inference knows none whose axes are an input. Of images,
    # because ONNX's reference evaluator pools nothing else right.
    largest = op.GlobalMaxPool(_spell_reshape(x, [0, -1, x.shape[-1], 1]))
    return _spell_reshape(largest, [0, -1, x.shape[-2], 1])


@torch.library.custom_op("flash_export::gelu", mutates_args=())
def gelu(x: torch.Tensor) -> torch.Tensor:
    """Return ``x * 0.5 * (1 + erf(x / sqrt(2)))``, as the one node that ONNX has for it from opset 20 on."""
    return torch.nn.functional.gelu(x)


@gelu.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _spell_gelu(x: Any) -> Any:
    return opset20.Gelu(x)


@torch.library.custom_op("flash_export::attend", mutates_args=())
def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor | None, is_causal: bool
) -> torch.Tensor:
    """Return ``softmax(q k^T + hidden) v``, as the one node that ONNX has for it from opset 23 on.

    Args:
        q: Queries that carry the scale, ``(b, h, i, s)``.
        k: Keys, ``(b, h, j, s)``.
        v: Values, ``(b, h, j, s)``.
        hidden: What is added to the scores, ``(b or 1, 1, i or 1, j)``; None: nothing.
        is_causal: Whether query i sees no key after i.
    """
    scores = q.float() @ k.float().mT
    if hidden is not None:
        scores = scores + hidden
    if is_causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    return (scores.softmax(dim=-1) @ v.float()).to(q.dtype)


@attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, is_causal: bool) -> Tensor:
    return torch.empty_like(q)


def _spell_attend(q: Any, k: Any, v: Any, hidden: Any, is_causal: bool) -> Any:
    # Without softmax_precision: TensorRT's parser refuses the attribute (TensorRT-RTX 1.7.1).
    attended, *_ = opset23.Attention(q, k, v, hidden, is_causal=int(is_causal), scale=1.0)
    return attended


TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.flash_export.reshape.default: _spell_reshape,
    torch.ops.flash_export.shift_half_token.default: _spell_shift_half_token,
    torch.ops.flash_export.sum_earlier_chunks.default: _spell_sum_earlier_chunks,
    torch.ops.flash_export.gather.default: _spell_gather,
    torch.ops.flash_export.take_at.default: _spell_take_at,
    torch.ops.flash_export.put_at.default: _spell_put_at,
    torch.ops.flash_export.find_largest.default: _spell_find_largest,
    torch.ops.flash_export.gelu.default: _spell_gelu,
    torch.ops.flash_export.attend.default: _spell_attend,
}
