"""``extend``: 1 to a chunk's length of tokens per row, at any position; of each row as many as ``lengths`` are kept.

What a token sees stands in the cache, in the block of new tokens or in the sum over earlier chunks. A block is at most
as long as a chunk, so that its tokens have slots of their own, and reach the end of one chunk at most:

- a token of an earlier chunk than the query's is weighed as linear attention does;
- one of the query's own chunk by its score; the table of biases hides the new tokens that come later.

The cache is read before it is written: a new token takes the slot of one that others of its block still see.

Axes: b batch, n token of the block, t token that is seen, c slot of the cache, d model, e hidden, s query/key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from flash_export.exporters.lowering.chunks import count_half_tokens, count_tokens
from flash_export.exporters.lowering.flash_state import LayerState, StatefulFlash, StatefulLayer
from flash_export.exporters.lowering.fold import HIDDEN_SCORE
from flash_export.exporters.lowering.precision import widen
from flash_export.exporters.lowering.shared_modules import WEIGHTS
from flash_export.exporters.marks import mark
from flash_export.exporters.spelling import gather, put_at, reshape, take_at

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from flash_export.exporters.lowering.flash import LoweredFlash, LoweredFlashLayer
    from flash_export.exporters.lowering.heads import Turns


class Block(NamedTuple):
    """Where the tokens of a block go, and what they see.

    Attributes:
        slots: The slot of each token in the cache, ``(b, n)``.
        places: Row and slot of each token, ``(b, n, 2)``.
        distances: From each new token back to each, ``(n, n)``; a chunk's length to those after it.
        is_cached_linear: Whether a cached token is of an earlier chunk than the query, ``(b, n, c)``.
        is_linear: Whether a new token is, ``(b, n, n)``.
        is_kept: Whether a token goes into the state, ``(b, n, 1)``.
        kept: 1 for those tokens, ``(b, n, 1)``.
        halves: The numbers of all half tokens, ``(2n)``.
        last_half: Row and number of the half token that is shifted next, counted from the one before the block,
            ``(b, 2)``.
    """

    slots: Int[Tensor, "b n"]
    places: Int[Tensor, "b n 2"]
    distances: Int[Tensor, "n n"]
    is_cached_linear: Bool[Tensor, "b n c"]
    is_linear: Bool[Tensor, "b n n"]
    is_kept: Bool[Tensor, "b n 1"]
    kept: Float[Tensor, "b n 1"]
    halves: Int[Tensor, " 2n"]
    last_half: Int[Tensor, "b 2"]


class ExtendLayer(StatefulLayer):
    """One layer over a block of tokens."""

    def __init__(self, layer: LoweredFlashLayer) -> None:
        """Share the weights of a layer.

        Between tokens of one chunk the bias depends on their distance alone, wherever in it they are.
        """
        super().__init__(layer)
        bias = self.quadratic.bias
        self.bias_by_distance = nn.Buffer(torch.cat((bias[-1].flip(0), bias.new_full((1,), HIDDEN_SCORE))))

    def forward(
        self, x: Float[Tensor, "b n d"], turns: Turns, block: Block, past: LayerState
    ) -> tuple[Float[Tensor, "b n d"], LayerState]:
        """Attend to the past and to each other, and return the state with the tokens that are kept."""
        normed, shift = self.precision.narrow(self.norm(x), "normed"), None
        if past.shift is not None:
            normed, shift = self._shift(normed, block, past.shift)
        v, gate, z = self.projection.project_few(mark(normed, "normed", self.norm_gain))
        heads = reshape(self.heads.rotate_few(z.unsqueeze(2), turns), [0, 0, -1])  # side by side
        quad_q, lin_q, quad_k, lin_k = self.mark_heads(heads.split(z.shape[-1], dim=-1))
        v = mark(v, "value")
        new = LayerState(past.kv, self.store(quad_k, "heads"), self.store(lin_k, "heads"), self.store(v, "value"))
        mixed = self._attend(quad_q, lin_q, new, block, past)
        return self.finish(x, self.gate_mixed(gate, mixed)), self.mark_state(self._keep(new, block, past, shift))

    def _shift(
        self, normed: Float[Tensor, "b n d"], block: Block, before: Float[Tensor, "b d/2"]
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b d/2"]]:
        """Move the tokens by half of one, and return the half that comes in next."""
        width = normed.shape[-1]
        halves = reshape(normed, [0, -1, width // 2])
        longer = torch.cat((self.precision.narrow(before, "normed").unsqueeze(1), halves), dim=1)
        shift = self.store(take_at(longer, block.last_half), "normed")
        return reshape(gather(longer, block.halves, axis=1), [0, -1, width]), shift

    def _attend(
        self,
        quad_q: Float[Tensor, "b n s"],
        lin_q: Float[Tensor, "b n s"],
        new: LayerState,
        block: Block,
        past: LayerState,
    ) -> Float[Tensor, "b n e"]:
        """Return what each token sees of the cache, of the block and of the sum."""
        precision, quadratic = self.precision, self.quadratic
        biases = (F.embedding(block.slots, quadratic.bias), gather(self.bias_by_distance, block.distances))
        mixed = precision.multiply(lin_q, precision.narrow(past.kv, "kv"), "linear")
        for seen, bias, is_linear in zip((past, new), biases, (block.is_cached_linear, block.is_linear), strict=True):
            quad_k, lin_k = (precision.narrow(k, "heads") for k in (seen.quad_k, seen.lin_k))
            linear = precision.multiply(lin_q, lin_k.mT, WEIGHTS)
            weights = torch.where(is_linear, linear, quadratic.weigh(quad_q, quad_k, bias))  # (b, n, t)
            attended = precision.multiply(weights, precision.narrow(seen.v, "value"), "quadratic")
            mixed = precision.combine(torch.add, mixed, attended, "mixed")
        return mixed

    def _keep(self, new: LayerState, block: Block, past: LayerState, shift: Tensor | None) -> LayerState:
        """Return the state after the tokens that are kept: what they take the slots of moves into the sum."""
        leaving_k, leaving_v = take_at(past.lin_k, block.places), take_at(past.v, block.places)
        return LayerState(
            kv=past.kv + widen(leaving_k).mT @ (widen(leaving_v) * block.kept),
            quad_k=self._put(past.quad_k, new.quad_k, take_at(past.quad_k, block.places), block),
            lin_k=self._put(past.lin_k, new.lin_k, leaving_k, block),
            v=self._put(past.v, new.v, leaving_v, block),
            shift=shift,
        )

    @staticmethod
    def _put(
        cache: Float[Tensor, "b c w"], entering: Float[Tensor, "b n w"], leaving: Float[Tensor, "b n w"], block: Block
    ) -> Float[Tensor, "b c w"]:
        """Return the cache with the tokens that are kept in their slots; the others put back what was there."""
        return put_at(cache, block.places, torch.where(block.is_kept, entering, leaving))


class ExtendFlash(StatefulFlash):
    """``forward(input_ids, lengths, state) -> logits, state`` for up to a chunk's length of tokens at any position."""

    def __init__(self, lowered: LoweredFlash) -> None:
        """Share the weights of a lowered model."""
        super().__init__(lowered, ExtendLayer)

    def forward(
        self, input_ids: Int[Tensor, "b n"], lengths: Int[Tensor, " b"], state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the logits of every token, and the state after as many of each row as ``lengths`` says, 0 to n."""
        position, numbers = state[0], count_tokens(input_ids.shape[1])
        positions = (position.float() + numbers).unsqueeze(-1)  # (b, n, 1)
        x, layers = mark(self.embedding(input_ids, positions), "embedding", order="channels"), []
        turns = self.rotary.turn_few(positions.unsqueeze(-1), x.unsqueeze(2))
        block = self._find_block(position % self.config.chunk_size, numbers, lengths.unsqueeze(1))
        for layer, past in zip(self.layers, self.split_state(state), strict=True):
            x, new = layer(x, turns, block, past)
            layers.append(new)
        return self.head(x), self.join_state(position + lengths.unsqueeze(1), layers)

    def _find_block(
        self, first_slot: Int[Tensor, "b 1"], numbers: Float[Tensor, " n"], lengths: Int[Tensor, "b 1"]
    ) -> Block:
        chunk_size = self.config.chunk_size
        ends = first_slot + numbers.long()
        slots = ends % chunk_size
        rows = torch.arange(first_slot.shape[0]).unsqueeze(1)
        chunks = (ends >= chunk_size).float()  # 0 for the open chunk, 1 for the one after it
        query_chunks, key_chunks = chunks.unsqueeze(2), chunks.unsqueeze(1)
        is_open = (torch.arange(chunk_size) < first_slot).float().unsqueeze(1)  # (b, 1, c)
        distances = numbers.unsqueeze(1) - numbers
        is_kept = (numbers < lengths.float()).unsqueeze(-1)
        return Block(
            slots=slots,
            places=torch.stack((rows + slots * 0, slots), dim=-1),
            distances=torch.where(distances < 0, float(chunk_size), distances).int(),
            is_cached_linear=is_open <= query_chunks,
            is_linear=query_chunks > key_chunks,
            is_kept=is_kept,
            kept=is_kept.float(),
            halves=count_half_tokens(numbers.int().unsqueeze(-1)),
            last_half=torch.cat((rows, lengths * 2), dim=1),
        )
