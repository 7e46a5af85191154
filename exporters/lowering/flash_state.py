"""The graphs of a causal ``flash`` model that carry the past in a state of constant size.

Of the past, a layer needs the sum of ``k^T v`` over all chunks before the open one, and the tokens of the open chunk. A
cache of one chunk holds the open chunk and, in the slots that it has not reached, the tokens of the chunk before: they
are weighed as linear attention does. A new token takes the slot of the token one chunk earlier, which moves into the
sum. So no step differs from another, and a chunk that fills up needs no branch.

Axes: b batch, g chunk, c position in a chunk, p token of all chunks, d model, e hidden, s query/key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional as F

from flash_export.config import DECODE, PREFILL
from flash_export.exporters.lowering.base import Lowering, StateGraphs
from flash_export.exporters.lowering.chunks import count_half_tokens, cut_end, cut_into_chunks
from flash_export.exporters.lowering.flash import GatedOutput, LoweredFlash
from flash_export.exporters.lowering.precision import FP32, widen
from flash_export.exporters.lowering.shared_modules import WEIGHTS
from flash_export.exporters.spelling import gather, put_at, reshape, shift_half_token, sum_earlier_chunks, take_at
from flash_export.interface import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float, Int
    from torch import Tensor

    from flash_export.exporters.lowering.flash import LoweredFlashLayer
    from flash_export.exporters.lowering.heads import Turns
    from flash_export.exporters.lowering.precision import Precision
    from flash_export.models.flash import FlashConfig


class LayerState(NamedTuple):
    """What one layer keeps of the past of each row; ``shift`` only where tokens are shifted."""

    kv: Tensor  # (b, s, e)
    quad_k: Tensor  # (b, c, s)
    lin_k: Tensor  # (b, c, s)
    v: Tensor  # (b, c, e)
    shift: Tensor | None = None  # (b, d / 2)


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


class Slot(NamedTuple):
    """Where a token of each row goes.

    Attributes:
        place: Row and slot in the cache, ``(b, 1, 2)``.
        number: The slot alone, ``(b, 1)``.
        is_earlier: 1 for the slots that the open chunk has not reached, ``(b, 1, c)``.
    """

    place: Int[Tensor, "b 1 2"]
    number: Int[Tensor, "b 1"]
    is_earlier: Float[Tensor, "b 1 c"]


def describe_state(
    config: FlashConfig, batch: int | str, prefix: str, precision: Precision = FP32
) -> tuple[TensorSpec, ...]:
    """Return the tensors of the state, in the order in which the graphs take and return them.

    The sum is fp32 in every precision: what a token adds to it would be lost in half.
    """
    # Shape, and the value whose precision a tensor has.
    tensors: dict[str, tuple[tuple[int, ...], str | None]] = {
        "kv": ((config.qk_dim, config.hidden_dim), None),
        "quad_k": ((config.chunk_size, config.qk_dim), "heads"),
        "lin_k": ((config.chunk_size, config.qk_dim), "heads"),
        "v": ((config.chunk_size, config.hidden_dim), "value"),
    }
    if config.shift_tokens:
        tensors["shift"] = ((config.dim // 2,), "normed")
    layers = (
        TensorSpec(
            f"{prefix}{layer}.{name}",
            "float32" if value is None else precision.enter_block(layer).get_cache_dtype(value),
            (batch, *shape),
        )
        for layer in range(config.depth)
        for name, (shape, value) in tensors.items()
    )
    return (TensorSpec(f"{prefix}position", "int64", (batch, 1)), *layers)


class StatefulLayer(GatedOutput):
    """The weights of a lowered layer, under the same names."""

    def __init__(self, layer: LoweredFlashLayer) -> None:
        """Share the weights of a layer."""
        super().__init__()
        self.norm, self.projection, self.heads = layer.norm, layer.projection, layer.heads
        self.quadratic, self.precision = layer.quadratic, layer.precision
        self.out_weight, self.out_bias = layer.out_weight, layer.out_bias

    def multiply_chunks(self, k: Float[Tensor, "*b c s"], v: Float[Tensor, "*b c e"]) -> Float[Tensor, "*b s e"]:
        """Return ``k^T v`` of each chunk in fp32, in which they are summed."""
        return widen(self.precision.multiply(k.mT, v, "products"))

    def store(self, x: Tensor, name: str) -> Tensor:
        """Return a value in the dtype that it is carried in."""
        return widen(x) if self.precision.get_cache_dtype(name) == "float32" else x


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
        v, gate, z = self.projection(normed)
        quad_q, lin_q, quad_k, lin_k = self.heads(z, turns).split(1, dim=2)
        kv = self.multiply_chunks(lin_k, v)  # (b, g, 1, s, e)
        before = sum_earlier_chunks(kv) + (past.kv + self.sum_cached(past)).unsqueeze(1).unsqueeze(1)
        quadratic = self.quadratic(quad_q, quad_k, v)
        linear = precision.multiply(lin_q, precision.narrow(before, "kv"), "linear")
        mixed = precision.combine(torch.add, quadratic, linear, "mixed")
        new = LayerState(
            kv=take_at(before, end.chunk) + take_at(kv, end.chunk) * end.closes,
            quad_k=self.store(take_at(quad_k, end.chunk), "heads"),
            lin_k=self.store(take_at(lin_k, end.chunk), "heads"),
            v=self.store(precision.combine(torch.mul, take_at(v, end.chunk), end.is_open, "value"), "value"),
            shift=shift,
        )
        return self.project_out(x, self.apply_gate(gate, mixed)), new

    def sum_cached(self, past: LayerState) -> Float[Tensor, "b s e"]:
        """Return what the cached tokens add to the sum."""
        k, v = self.precision.narrow(past.lin_k, "heads"), self.precision.narrow(past.v, "value")
        return self.multiply_chunks(k, v)


class DecodeLayer(StatefulLayer):
    """One layer over one token per row.

    Tokens have no axis of their own: runtimes have a product of two matrices that adds the bias.
    """

    def forward(
        self,
        x: Float[Tensor, "b d"],
        turns: Turns,
        slot: Slot,
        past: LayerState,
    ) -> tuple[Float[Tensor, "b d"], LayerState]:
        """Attend to the past, and return the state with this token in it."""
        precision = self.precision
        normed, shift = precision.narrow(self.norm(x), "normed"), None
        if past.shift is not None:
            passing, shift = normed.chunk(2, dim=-1)
            normed = torch.cat((precision.narrow(past.shift, "normed"), passing), dim=-1)
            shift = self.store(shift, "normed")
        value, gate, z = self.projection.project_token(normed)
        entering = self.store(self.heads.rotate_token(z, turns), "heads")  # (b, 4, s)
        quad_q, lin_q, quad_k, lin_k, leaving_k = _order(entering, take_at(past.lin_k, slot.place))
        value, leaving_v = _order(self.store(value, "value"), take_at(past.v, slot.place))
        new = LayerState(
            kv=past.kv + widen(leaving_k).mT * widen(leaving_v),
            quad_k=put_at(past.quad_k, slot.place, quad_k),
            lin_k=put_at(past.lin_k, slot.place, lin_k),
            v=put_at(past.v, slot.place, value),
            shift=shift,
        )
        heads = (quad_q, lin_q, new.quad_k, new.lin_k)
        narrow_quad_q, narrow_lin_q, quad_k, lin_k = (precision.narrow(head, "heads") for head in heads)
        weights = self.quadratic.weigh(narrow_quad_q, quad_k, F.embedding(slot.number, self.quadratic.bias))
        linear_weights = precision.multiply(narrow_lin_q, lin_k.mT, WEIGHTS)
        earlier = precision.combine(torch.mul, linear_weights, slot.is_earlier, WEIGHTS)
        weights = precision.combine(torch.add, weights, earlier, WEIGHTS)  # (b, 1, c)
        quadratic = precision.multiply(weights, precision.narrow(new.v, "value"), "quadratic")
        # One row times an fp32 matrix that has to be read anyway: narrowing it first would read it twice.
        linear = precision.narrow(widen(lin_q) @ new.kv, "linear")
        mixed = precision.combine(torch.add, quadratic, linear, "mixed")
        return self.project_out(x, self.apply_gate(gate, mixed).squeeze(1)), new


def _order(entering: Float[Tensor, "b m w"], leaving: Float[Tensor, "b 1 w"]) -> tuple[Tensor, ...]:
    """Return all m + 1, such that a graph cannot write what enters before it has read what leaves.

    The old and the new state may share their memory.
    """
    return torch.cat((entering, leaving), dim=1).split(1, dim=1)


class StatefulFlash(nn.Module):
    """A lowered causal model whose graph takes and returns a state."""

    def __init__(self, lowered: LoweredFlash, layer_type: type[StatefulLayer]) -> None:
        """Share the weights of a lowered model."""
        super().__init__()
        self.config, self.precision = lowered.config, lowered.precision
        self.embedding, self.rotary, self.head = lowered.embedding, lowered.rotary, lowered.head
        layers = cast("list[LoweredFlashLayer]", lowered.layers)
        self.layers = nn.ModuleList(layer_type(layer) for layer in layers)

    def split_state(self, state: tuple[Tensor, ...]) -> Iterator[LayerState]:
        """Return the state of each layer; the first tensor is the position."""
        size = (len(state) - 1) // self.config.depth
        return (LayerState(*state[start : start + size]) for start in range(1, len(state), size))

    @staticmethod
    def join_state(position: Tensor, layers: list[LayerState]) -> tuple[Tensor, ...]:
        """Return the tensors of a state in the graph's order."""
        return (position, *(tensor for layer in layers for tensor in layer if tensor is not None))


class PrefillFlash(StatefulFlash):
    """``forward(input_ids, lengths, state) -> logits, state`` for segments that start at a multiple of the chunk."""

    def __init__(self, lowered: LoweredFlash) -> None:
        """Share the weights of a lowered model."""
        super().__init__(lowered, PrefillLayer)

    def forward(
        self, input_ids: Int[Tensor, "b seq"], lengths: Int[Tensor, " b"], state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the logits of every position, and the state after the last token of each row."""
        seq_len, chunk_size = input_ids.shape[1], self.config.chunk_size
        chunks = cut_into_chunks(seq_len, chunk_size)
        places = count_half_tokens(chunks.positions.unsqueeze(-1))
        positions = reshape(state[0].float() + chunks.positions, [0, -1, 1, chunk_size, 1])
        ids = gather(input_ids, reshape(chunks.tokens, [-1, 1, chunk_size]), axis=1)
        x = self.embedding(ids, positions)
        turns, end, layers = self.rotary(positions, x), self._find_ends(lengths), []
        for layer, past in zip(self.layers, self.split_state(state), strict=True):
            x, new = layer(x, turns, places, end, past)
            layers.append(new)
        x = cut_end(reshape(x, [0, -1, self.config.dim]), seq_len)
        return self.head(x), self.join_state(state[0] + lengths.unsqueeze(1), layers)

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


class DecodeFlash(StatefulFlash):
    """``forward(input_ids, state) -> logits, state`` for one token per row, at any position."""

    def __init__(self, lowered: LoweredFlash) -> None:
        """Share the weights of a lowered model."""
        super().__init__(lowered, DecodeLayer)

    def forward(self, input_ids: Int[Tensor, "b 1"], state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the logits of the token, and the state with it."""
        positions = state[0].float()
        x = self.embedding(input_ids.squeeze(1), positions)
        turns = self.rotary.turn_token(positions.unsqueeze(-1), x.unsqueeze(1))
        slot, layers = self._find_slot(state[0]), []
        for layer, past in zip(self.layers, self.split_state(state), strict=True):
            x, new = layer(x, turns, slot, past)
            layers.append(new)
        return self.head(x).unsqueeze(1), self.join_state(state[0] + 1, layers)

    def _find_slot(self, position: Int[Tensor, "b 1"]) -> Slot:
        number = position % self.config.chunk_size
        rows = torch.arange(position.shape[0]).unsqueeze(1)
        is_earlier = (torch.arange(self.config.chunk_size) > number).float().unsqueeze(1)
        is_earlier = self.precision.narrow(is_earlier, "valid")
        return Slot(torch.cat((rows, number), dim=1).unsqueeze(1), number, is_earlier)


FLASH = Lowering(
    LoweredFlash,
    growing=("weights", "quadratic", "products", "kv", "linear", "mixed", "gated", "update", "residual"),
    growing_around=lambda _: ("residual", "logits"),
    bounded=frozenset(
        {"table", "turns", "valid", "normed", "value", "gate", "heads", "scores", "weights", "quadratic", "logits"}
    ),
    state=StateGraphs({PREFILL: PrefillFlash, DECODE: DecodeFlash}, describe_state),
)
