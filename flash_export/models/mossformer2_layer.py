"""The block of MossFormer2: a gated attention that weighs values and gates alike, and a gated memory.

Axes: b batch, n frame, g chunk, c frame in a chunk, d model width, e width of values and of gates, s query/key width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from flash_export.layers.activation import relu_squared
from flash_export.layers.attention import OffsetScale, split_into_chunks
from flash_export.layers.convolution import FeedForwardConv
from flash_export.layers.fsmn import Fsmn
from flash_export.layers.norm import ScaleNorm
from flash_export.layers.position import shift_tokens
from flash_export.layers.tap import Tap

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from flash_export.layers.position import RotaryEmbedding
    from flash_export.models.mossformer2 import Mossformer2Config

HEADS = ("quad_q", "lin_q", "quad_k", "lin_k")  # in the order of the affine maps


class Mossformer2Layer(nn.Module):
    """One block: a gated attention that shares its weights between values and gates, and a gated memory."""

    def __init__(self, config: Mossformer2Config) -> None:
        """Create the block of a model with this config."""
        super().__init__()
        self.config = config
        dim, width, conv_size = config.dim, config.fsmn_dim, config.conv_size
        self.to_hidden = FeedForwardConv(ScaleNorm(dim), dim, 2 * config.hidden_dim, conv_size)
        self.to_qk = FeedForwardConv(ScaleNorm(dim), dim, config.qk_dim, conv_size)
        self.qk_offset_scale = OffsetScale(config.qk_dim, heads=4)
        self.to_out = FeedForwardConv(ScaleNorm(config.hidden_dim), config.hidden_dim, dim, conv_size)
        self.reduce = nn.Sequential(nn.Linear(dim, width), nn.PReLU(), nn.LayerNorm(width))
        self.to_u = FeedForwardConv(nn.LayerNorm(width), width, width, conv_size)
        self.to_v = FeedForwardConv(nn.LayerNorm(width), width, width, conv_size)
        self.fsmn = Fsmn(config.fsmn, width, config.memory_size)
        self.expand = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))
        self.tap = Tap()

    def forward(
        self, x: Float[Tensor, "b n d"], *, rotary: RotaryEmbedding, positions: Int[Tensor, " n"]
    ) -> Float[Tensor, "b n d"]:
        """Mix the frames, then add what the memory makes of them."""
        mixed = self.tap("mixed", x + self.to_out(self.attend(x, rotary, positions)))
        return self.tap("out", mixed + self.remember(mixed))

    def attend(
        self, x: Float[Tensor, "b n d"], rotary: RotaryEmbedding, positions: Int[Tensor, " n"]
    ) -> Float[Tensor, "b n e"]:
        """Return ``(A gate * value) * sigmoid(A value * gate)``, A being both branches of the attention."""
        tap, shifted = self.tap, self.tap("shifted", shift_tokens(x))
        value, gate = self.to_hidden(shifted).chunk(2, dim=-1)
        value, gate = tap("value", value), tap("gate", gate)
        quad_q, lin_q, quad_k, lin_k = (
            tap(name, rotary(head, positions))
            for name, head in zip(HEADS, self.qk_offset_scale(self.to_qk(shifted)), strict=True)
        )
        weights = tap("weights", self.weigh_in_chunks(quad_q, quad_k))

        def attend_to(values: Tensor, name: str) -> Tensor:
            # Keys beyond the end are 0, and so are their weights.
            in_chunks = weights @ split_into_chunks(values, self.config.chunk_size)
            quadratic = tap(f"quadratic_{name}", in_chunks.flatten(1, 2)[:, : x.shape[1]])
            kv = tap(f"kv_{name}", lin_k.mT @ values / x.shape[1])  # (b, s, e)
            return quadratic + tap(f"linear_{name}", lin_q @ kv)

        attended_value, attended_gate = attend_to(value, "value"), attend_to(gate, "gate")
        return tap("gated", (attended_gate * value) * torch.sigmoid(attended_value * gate))

    def weigh_in_chunks(self, q: Float[Tensor, "b n s"], k: Float[Tensor, "b n s"]) -> Float[Tensor, "b g c c"]:
        """Return ``relu²(q k^T / C)`` inside each chunk."""
        q, k = (split_into_chunks(head, self.config.chunk_size) for head in (q, k))
        return relu_squared(q @ k.mT / self.config.chunk_size)

    def remember(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Return ``expand(v * fsmn(u) + reduced)``, u and v being features of what was reduced."""
        reduced = self.tap("reduced", self.reduce(x))
        remembered = self.tap("remembered", self.fsmn(self.to_u(reduced)))
        return self.expand(self.to_v(reduced) * remembered + reduced)
