"""``prefill``: a segment of any length from the beginning of a chunk on.

Axes: b batch, g chunk, c position in a chunk, p token of all chunks, d model, e hidden, s query/key.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from flash_export.exporters.lowering.chunks import count_half_tokens, cut_end, cut_into_chunks
from flash_export.exporters.lowering.flash_state import LayerState, StatefulFlash, StatefulLayer
from flash_export.exporters.marks import mark
from flash_export.exporters.spelling import gather, reshape, shift_half_token, sum_earlier_chunks, take_at

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from flash_export.exporters.lowering.flash import LoweredFlash
    from flash_export.exporters.lowering.heads import Turns


class SegmentEnd(NamedTuple):
    """Where the rows of a segment end.

    Attributes:
        chunk: Row, chunk and head 0 of the chunk that the last token is in, ``(b, 3)``.
        half: Row and number of the second half of the last token, ``(b, 2)``.
        closes: 1 for rows that end with their chunk, ``(b, 1, 1)``.
        is_open: 1 for the tokens of the chunk that stays open, ``(b, c, 1)``.
    """

    chunk: Int[Tensor, "b 3"]
    half: Int[Tensor, "b 2"]
    closes: Float[Tensor, "b 1 1"]
    is_open: Float[Tensor, "b c 1"]


class PrefillLayer(StatefulLayer):
    """One layer over a segment that starts with a chunk."""

    def forward(
        self,
        x: Float[Tensor, "b g 1 c d"],
        turns: Turns,
        places: Int[Tensor, " 2p"],
        end: SegmentEnd,
        past: LayerState,
    ) -> tuple[Float[Tensor, "b g 1 c d"], LayerState]:
        """Mix the tokens, and return the state after each row's last one."""
        precision = self.precision
        normed, shift = precision.narrow(self.norm(x), "normed"), None
        if past.shift is not None:
            halves = reshape(normed, [0, -1, normed.shape[-1] // 2])
            shift = self.store(take_at(halves, end.half), "normed")
            normed = shift_half_token(normed, places, precision.narrow(past.shift, "normed").unsqueeze(1))
        v, gate, z = self.projection(mark(normed, "normed", self.norm_gain))
        quad_q, lin_q, quad_k, lin_k = self.mark_heads(self.heads(z, turns).split(1, dim=2))
        v = mark(v, "value")
        kv = self.multiply_chunks(lin_k, v)  # (b, g, 1, s, e)
        before = sum_earlier_chunks(kv) + (past.kv + self.sum_cached(past)).unsqueeze(1).unsqueeze(1)
        quadratic = mark(self.quadratic(quad_q, quad_k, v), "quadratic", self.factor)
        linear = mark(precision.multiply(lin_q, precision.narrow(before, "kv"), "linear"), "linear", self.factor)
        mixed = precision.combine(torch.add, quadratic, linear, "mixed")
        new = LayerState(
            kv=take_at(before, end.chunk) + take_at(kv, end.chunk) * end.closes,
            quad_k=self.store(take_at(quad_k, end.chunk), "heads"),
            lin_k=self.store(take_at(lin_k, end.chunk), "heads"),
            v=self.store(precision.combine(torch.mul, take_at(v, end.chunk), end.is_open, "value"), "value"),
            shift=shift,
        )
        return self.finish(x, self.gate_mixed(gate, mixed)), self.mark_state(new)

    def sum_cached(self, past: LayerState) -> Float[Tensor, "b s e"]:
        """Return what the cached tokens add to the sum."""
        k, v = self.precision.narrow(past.lin_k, "heads"), self.precision.narrow(past.v, "value")
        return self.multiply_chunks(k, v)


class PrefillFlash(StatefulFlash):
    """``forward(input_ids, lengths, state) -> logits, state`` for segments that start at a multiple of the chunk.

    The logits of rows that start elsewhere are NaN, whoever runs the graph.
    """

    def __init__(self, lowered: LoweredFlash) -> None:
        """Share the weights of a lowered model."""
        super().__init__(lowered, PrefillLayer)

    def forward(
        self, input_ids: Int[Tensor, "b seq"], lengths: Int[Tensor, " b"], state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the logits of every position, and the state after the last token of each row."""
        seq_len, chunk_size = input_ids.shape[1], self.config.chunk_size
        chunks = cut_into_chunks(seq_len, chunk_size)
        places = count_half_tokens(chunks.numbers.unsqueeze(-1))
        positions = reshape(state[0].float() + chunks.numbers.float(), [0, -1, 1, chunk_size, 1])
        ids = gather(input_ids, reshape(chunks.tokens, [-1, 1, chunk_size]), axis=1)
        x = mark(self.embedding(ids, positions), "embedding", order="channels")
        turns, end, layers = self.rotary(positions, x), self._find_ends(lengths), []
        for layer, past in zip(self.layers, self.split_state(state), strict=True):
            x, new = layer(x, turns, places, end, past)
            layers.append(new)
        x = cut_end(reshape(x, [0, -1, self.config.dim]), seq_len)
        is_aligned = (state[0] % chunk_size == 0).unsqueeze(-1)
        logits = torch.where(is_aligned, self.head(x), math.nan)
        return logits, self.join_state(state[0] + lengths.unsqueeze(1), layers)

    def _find_ends(self, lengths: Int[Tensor, " b"]) -> SegmentEnd:
        chunk_size = self.config.chunk_size
        rows, last = torch.arange(lengths.shape[0]), lengths - 1
        num_open = (lengths % chunk_size).unsqueeze(1)
        chunk = torch.stack((rows, last // chunk_size, torch.zeros_like(rows)), dim=-1)
        return SegmentEnd(
            chunk=chunk,
            half=torch.stack((rows, 2 * last + 1), dim=-1),
            closes=(num_open == 0).float().unsqueeze(-1),
            is_open=self.precision.narrow((torch.arange(chunk_size) < num_open).float().unsqueeze(-1), "valid"),
        )
