"""The export form of family ``mossformer2``: speech enhancement and separation.

Frames stand between an axis of 1 and their channels throughout, as convolutions want them, see :class:`TimeConv`. Only
the attention is padded to whole chunks and cut into them; what norms and convolutions see ends where the sequence does.
Values and gates are products of their own: cutting them out of one would copy them, and take TensorRT 13 layers.

Axes: b batch, n frame, g chunk, c frame in a chunk, i feature of a frame, d model width, e width of values and of
gates, s query/key width, r rotated width, k speaker, o width of a mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import nn

from flash_export.exporters.lowering.base import LoweredModel, Lowering
from flash_export.exporters.lowering.chunks import (
    begin_shift,
    count_half_tokens,
    count_tokens,
    cut_into_chunks,
)
from flash_export.exporters.lowering.flash import FP16_KEY_DIVISOR, LinearAttention
from flash_export.exporters.lowering.fold import (
    order_channels,
)
from flash_export.exporters.lowering.heads import Heads, Rotary, order_rotary_pairs
from flash_export.exporters.lowering.mossformer2_around import Decoder, Encoder, FrameEmbedding, MaskHead
from flash_export.exporters.lowering.mossformer2_memory import LoweredMemory
from flash_export.exporters.lowering.precision import FP32, widen
from flash_export.exporters.lowering.shared_modules import RESIDUAL, WEIGHTS, LoweredScaleNorm, apply_attention_fn
from flash_export.exporters.lowering.spectrum import LoweredFeatures, LoweredSpectrum
from flash_export.exporters.lowering.time_conv import fold_feed_forward
from flash_export.exporters.marks import mark
from flash_export.exporters.spelling import gather, reshape, shift_half_token
from flash_export.layers.activation import RELU2
from flash_export.models.mossformer2 import SeparationModel, SpeechModel
from flash_export.models.mossformer2_layer import HEADS

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from flash_export.exporters.lowering.heads import Turns
    from flash_export.exporters.lowering.precision import Precision
    from flash_export.layers.norm import ScaleNorm
    from flash_export.models.mossformer2 import Mossformer2Config, Mossformer2Model
    from flash_export.models.mossformer2_layer import Mossformer2Layer


class Frames(NamedTuple):
    """What depends on the number of frames alone, and is computed once for all blocks."""

    in_chunks: Int[Tensor, "g c"]
    valid: Float[Tensor, "1 1 g c 1"]
    kept: Int[Tensor, " n"]
    places: Int[Tensor, " 2n"]
    before: Float[Tensor, "b 1 d/2"]
    turns: Turns
    inverse_length: Float[Tensor, "1 1 1 1"]


class LoweredAttention(nn.Module):
    """The gated attention of a block: from its input to what passes the gate."""

    def __init__(self, layer: Mossformer2Layer, rotary_dim: int, precision: Precision = FP32) -> None:
        """Fold the weights of the reference block."""
        super().__init__()
        config, self.precision = layer.config, precision
        self.norm = LoweredScaleNorm(cast("ScaleNorm", layer.to_hidden.norm))
        order = order_rotary_pairs(config.qk_dim, rotary_dim)
        values, gates = torch.arange(2 * config.hidden_dim).chunk(2)
        self.to_value = fold_feed_forward(layer.to_hidden, precision, "hidden", values)
        self.to_gate = fold_feed_forward(layer.to_hidden, precision, "hidden", gates)
        self.to_qk = fold_feed_forward(layer.to_qk, precision, "hidden", order.columns)
        key_divisor = FP16_KEY_DIVISOR if precision.name == "fp16" else 1.0
        factors = [1 / config.chunk_size, 1.0, 1.0, 1 / key_divisor]
        self.heads = Heads(layer.qk_offset_scale, factors, order, precision)
        # All frames are one chunk to the linear branch, which then need not be padded.
        self.linear = LinearAttention(key_divisor, sum_over_chunks=False, precision=precision)

    def forward(self, x: Float[Tensor, "b 1 n d"], frames: Frames) -> Float[Tensor, "b 1 n e"]:
        """Attend: ``(A gate * value) * sigmoid(A value * gate)``."""
        precision = self.precision
        shifted = mark(shift_half_token(x, frames.places, frames.before), "shifted")
        normed = precision.narrow(self.norm(shifted), "normed")
        value, gate = mark(self.to_value(normed), "value"), mark(self.to_gate(normed), "gate")
        heads = self.heads(self.to_qk(normed), frames.turns)
        quad_q, lin_q, quad_k, lin_k = (
            mark(head, name, 1 / factor, order="heads")
            for head, name, factor in zip(heads.split(1, dim=1), HEADS, self.heads.factors, strict=True)
        )
        weights = mark(self._weigh(quad_q, quad_k, frames), "weights")

        def attend(values: Tensor, name: str) -> Tensor:
            quadratic = mark(self._attend_in_chunks(weights, values, frames), f"quadratic_{name}")
            linear = self.linear(lin_q, lin_k, values, frames.inverse_length, quantity=f"kv_{name}")
            return precision.combine(torch.add, quadratic, mark(linear, f"linear_{name}"), "attended")

        passing = torch.sigmoid(precision.combine(torch.mul, attend(value, "value"), gate, "gated"))
        gated = precision.combine(torch.mul, attend(gate, "gate"), value, "gated")
        return mark(precision.combine(torch.mul, gated, passing, "gated"), "gated")

    def _weigh(
        self, q: Float[Tensor, "b 1 n s"], k: Float[Tensor, "b 1 n s"], frames: Frames
    ) -> Float[Tensor, "b 1 g c c"]:
        """Return ``relu²(q k^T)`` inside each chunk; keys beyond the end are 0, and so are their weights."""
        q, k = (gather(x, frames.in_chunks, axis=2) for x in (q, k))
        k = self.precision.combine(torch.mul, k, frames.valid, "heads")
        return apply_attention_fn(self.precision.multiply(q, k.mT, "scores"), RELU2, self.precision)

    def _attend_in_chunks(
        self, weights: Float[Tensor, "b 1 g c c"], values: Float[Tensor, "b 1 n e"], frames: Frames
    ) -> Float[Tensor, "b 1 n e"]:
        """Return the weighted sums, those beyond the end cut off."""
        attended = self.precision.multiply(weights, gather(values, frames.in_chunks, axis=2), "quadratic")
        return gather(reshape(attended, [0, 1, -1, values.shape[-1]]), frames.kept, axis=2)


class LoweredMossformer2Layer(nn.Module):
    """One block in export form."""

    def __init__(
        self, layer: Mossformer2Layer, rotary_dim: int, channels: Int[Tensor, " d"], precision: Precision = FP32
    ) -> None:
        """Fold the weights of the reference block, for a residual stream whose channels are in this order."""
        super().__init__()
        self.precision = precision
        self.attention = LoweredAttention(layer, rotary_dim, precision)
        to_out = layer.to_out
        self.norm = LoweredScaleNorm(cast("ScaleNorm", to_out.norm))
        self.out = fold_feed_forward(to_out, precision, "update", channels)
        self.memory = LoweredMemory(layer, channels, precision)

    def forward(self, x: Float[Tensor, "b 1 n d"], frames: Frames) -> Float[Tensor, "b 1 n d"]:
        """Mix the frames, then add what the memory makes of them."""
        precision = self.precision
        normed = precision.narrow(self.norm(self.attention(x, frames)), "update_in")
        mixed = mark(precision.narrow(widen(x) + widen(self.out(normed)), RESIDUAL), "mixed", order="channels")
        return mark(precision.narrow(widen(mixed) + self.memory(mixed), RESIDUAL), "out", order="channels")


class LoweredMossformer2(LoweredModel):
    """A MossFormer2 model in export form: ``forward(features) -> mask``, or from a waveform to speech or sources."""

    def __init__(self, model: Mossformer2Model, precision: Precision = FP32) -> None:
        """Fold the weights of the reference model."""
        super().__init__()
        self.config: Mossformer2Config = model.config
        self.precision = precision
        freqs = model.rotary_pos_emb.freqs
        channels, _ = order_channels(model.config.dim, shift_tokens=True)
        order = order_rotary_pairs(model.config.qk_dim, 2 * len(freqs))
        self.orders = {"channels": channels.tolist(), "heads": order.columns.tolist()}
        self.rotary = Rotary(freqs, model.config.qk_dim, len(HEADS), precision)
        if isinstance(model, SpeechModel):
            self.features, self.spectrum = LoweredFeatures(model.frames), LoweredSpectrum(model.frames)
        if isinstance(model, SeparationModel):
            self.encoder, self.decoder = Encoder(model), Decoder(model)
        self.embedding = FrameEmbedding(model, channels, precision)
        layers = cast("list[Mossformer2Layer]", model.layers)
        self.layers = nn.ModuleList(
            LoweredMossformer2Layer(layer, 2 * len(freqs), channels, precision.enter_block(index))
            for index, layer in enumerate(layers)
        )
        self.head = MaskHead(model, channels, precision)

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return the mask of the speech, the speech, or the waveforms of the speakers."""
        if self.config.interface.unit == "frames":
            masks = self._estimate_masks(reshape(x, [0, 1, -1, self.config.in_channels]))
            return reshape(masks, [0, -1, self.config.out_channels])
        if self.config.spectrum is not None:
            plane = reshape(x, [0, 1, 1, -1])
            masks = mark(self._estimate_masks(mark(self.features(plane), "features")), "mask")
            return self.spectrum(plane, masks)
        encoded = mark(self.encoder(x), "encoded")
        masks = self._estimate_masks(encoded)
        return self.decoder(reshape(encoded, [0, -1, 1, self.config.in_channels]) * masks, x.shape[1])

    def _estimate_masks(self, features: Float[Tensor, "b 1 n i"]) -> Float[Tensor, "b n k o"]:
        positions = reshape(count_tokens(features.shape[2]), [1, 1, -1, 1])
        embedding = mark(self.embedding(features, positions), "embedding", order="channels")
        frames, x = self._count_frames(features.shape[2], positions, embedding), embedding
        for layer in self.layers:
            x = layer(x, frames)
        return self.head(x, embedding)

    def _count_frames(
        self, num_frames: int, positions: Float[Tensor, "1 1 n 1"], embedding: Float[Tensor, "b 1 n d"]
    ) -> Frames:
        """Return what all blocks need to know of the number of frames."""
        chunks = cut_into_chunks(num_frames, self.config.chunk_size)
        valid = reshape((chunks.numbers < num_frames).float(), [1, 1, -1, self.config.chunk_size, 1])
        return Frames(
            in_chunks=reshape(chunks.tokens, [-1, self.config.chunk_size]),
            valid=self.precision.narrow(valid, "turns"),
            kept=reshape(positions.int(), [-1]),
            places=count_half_tokens(positions.int()),
            before=begin_shift(embedding),
            turns=self.rotary(positions, embedding),
            inverse_length=1 / (torch.zeros(1, 1, 1, 1) + num_frames),
        )


# All but the sum over all frames: norms bound what a block reads, and other sums go over a chunk or are divided.
_BOUNDED_IN_BLOCKS = (
    *("normed", "hidden", "heads", "scores", WEIGHTS, "quadratic", "kv", "linear", "attended", "gated", "update_in"),
    *("update", "reduction", "reduced", "features_in", "features", "memory_in", "memory", "remembered", "recalled"),
    *("expansion_in", "expansion"),
)
_BOUNDED_AROUND = ("turns", "features_normed", "embedding", "speakers", "output", "masks", RESIDUAL)
MOSSFORMER2 = Lowering(
    LoweredMossformer2,
    growing=("heads", "scores", WEIGHTS, "quadratic", "products", "kv", "linear", "attended", "gated", RESIDUAL),
    growing_around=lambda _: (RESIDUAL,),
    bounded=frozenset((*_BOUNDED_IN_BLOCKS, *_BOUNDED_AROUND)),
)
