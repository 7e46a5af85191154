"""Where the tokens of a sequence of any length are, once it is cut into chunks.

Tokens are counted in fp32, which TensorRT makes fewer layers of than of integers, and which is exact up to 16 million.
Their numbers are int32 from there on: a runtime that computes fp32 graphs in less would count wrong, as OpenVINO does
on processors with bf16 unless it is told not to. TensorRT makes no layer of a Gather that cuts at a length, where a Pad
or a Slice needs up to 30 to compute its sizes.

Axes: b batch, n token, p token of the padded sequence, g chunk, c position in a chunk, d width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from flash_export.exporters.spelling import gather, reshape

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


class Chunks(NamedTuple):
    """A sequence padded to whole chunks.

    Attributes:
        numbers: The numbers of its tokens.
        tokens: Those of the sequence that they are; the last one stands in for what is beyond it.
    """

    numbers: Int[Tensor, " p"]
    tokens: Int[Tensor, " p"]


def cut_into_chunks(seq_len: int, chunk_size: int) -> Chunks:
    """Return what a sequence of this length becomes."""
    numbers = count_tokens((seq_len + (chunk_size - 1)) // chunk_size * chunk_size).int()
    return Chunks(numbers, numbers.clamp(max=seq_len - 1))


def count_tokens(seq_len: int) -> Float[Tensor, " n"]:
    """Return the numbers of all tokens."""
    return torch.arange(seq_len, dtype=torch.float32)


def find_earlier_chunks(numbers: Int[Tensor, " p"], chunk_size: int) -> Bool[Tensor, "g g"]:
    """Return for each chunk (row) which ones (columns) are before it."""
    first = gather(reshape(numbers, [-1, chunk_size]), torch.zeros(1, dtype=torch.int32), axis=1)
    return first > first.mT


def count_half_tokens(numbers: Int[Tensor, "*n 1"]) -> Int[Tensor, " 2n"]:
    """Return the numbers of all half tokens, given those of all tokens."""
    return reshape(numbers * 2 + torch.arange(2, dtype=torch.int32), [-1])


def cut_end(x: Float[Tensor, "b p d"], seq_len: int) -> Float[Tensor, "b n d"]:
    """Return the tokens of the sequence, without those of the padding."""
    return gather(x, count_tokens(seq_len).int(), axis=1)


def begin_shift(x: Float[Tensor, "b ... d"]) -> Float[Tensor, "b 1 d/2"]:
    """Return the half token before the first: zeros, of as many rows as there are."""
    halves = reshape(x, [0, -1, x.shape[-1] // 2])
    return gather(halves, torch.zeros(1, dtype=torch.int32), axis=1) * 0
