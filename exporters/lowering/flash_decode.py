"""``decode``: one token per row, at any position.

Axes: b batch, c slot of the cache, d model, e hidden, s query/key, m tensors at once, w any width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F

from flash_export.exporters.lowering.flash_state import LayerState, StatefulFlash, StatefulLayer
from flash_export.exporters.lowering.precision import widen
from flash_export.exporters.lowering.shared_modules import WEIGHTS
from flash_export.exporters.marks import mark
from flash_export.exporters.spelling import put_at, take_at

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from flash_export.exporters.lowering.flash import LoweredFlash
    from flash_export.exporters.lowering.heads import Turns


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
        value, gate, z = self.projection.project_few(mark(normed, "normed", self.norm_gain))
        value = mark(value, "value")
        entering = self.store(self.heads.rotate_few(z, turns), "heads")  # (b, 4, s)
        *entered, leaving_k = _order(entering, take_at(past.lin_k, slot.place))
        quad_q, lin_q, quad_k, lin_k = self.mark_heads(entered)
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
        return self.finish(x, self.gate_mixed(gate, mixed).squeeze(1)), self.mark_state(new)


def _order(entering: Float[Tensor, "b m w"], leaving: Float[Tensor, "b 1 w"]) -> tuple[Tensor, ...]:
    """Return all m + 1, such that a graph cannot write what enters before it has read what leaves.

    The old and the new state may share their memory.
    """
    return torch.cat((entering, leaving), dim=1).split(1, dim=1)


class DecodeFlash(StatefulFlash):
    """``forward(input_ids, state) -> logits, state`` for one token per row, at any position."""

    def __init__(self, lowered: LoweredFlash) -> None:
        """Share the weights of a lowered model."""
        super().__init__(lowered, DecodeLayer)

    def forward(self, input_ids: Int[Tensor, "b 1"], state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the logits of the token, and the state with it."""
        positions = state[0].float()
        x = mark(self.embedding(input_ids.squeeze(1), positions), "embedding", order="channels")
        turns = self.rotary.turn_few(positions.unsqueeze(-1), x.unsqueeze(1))
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
