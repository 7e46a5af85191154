"""What stands around the blocks of MossFormer2, in export form: norms, embedding and masks; encoder and decoder.

Axes: b batch, n frame, i feature of a frame, d model width, k speaker, o width of a mask, t sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn import functional as F

from flash_export.exporters.lowering.precision import widen
from flash_export.exporters.lowering.shared_modules import RESIDUAL, lower_norm
from flash_export.exporters.marks import mark
from flash_export.exporters.spelling import reshape

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from flash_export.exporters.lowering.precision import Precision
    from flash_export.layers.norm import GlobalNorm
    from flash_export.models.mossformer2 import Mossformer2Model, SeparationModel


class LoweredGlobalNorm(nn.Module):
    """The norm of whole rows, in fp32; what it learned is multiplied by the one factor of a row."""

    def __init__(self, norm: GlobalNorm, channels: Int[Tensor, " d"]) -> None:
        """Take what the reference norm learned, in this order of its channels."""
        super().__init__()
        self.eps = norm.eps
        self.gain, self.bias = nn.Buffer(norm.weight[channels]), nn.Buffer(norm.bias[channels])

    def forward(self, x: Float[Tensor, "b 1 n d"]) -> Float[Tensor, "b 1 n d"]:
        """Normalise each row."""
        x = widen(x)
        centred = x - take_mean(x)
        return centred * (self.gain / (take_mean(centred * centred) + self.eps).sqrt()) + self.bias


def take_mean(x: Float[Tensor, "b 1 n d"]) -> Float[Tensor, "b 1 1 1"]:
    """Return the mean of each row: that of its frames' means.

    onnxruntime sums all that it is asked for one after the other: over 65,536 frames at once, a mean square is wrong by
    1e-3, and by 1e-5 in two steps.
    """
    return x.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)


class FrameEmbedding(nn.Module):
    """From the features of frames to the residual stream: norm, projection, and the sinusoid of positions."""

    def __init__(self, model: Mossformer2Model, channels: Int[Tensor, " d"], precision: Precision) -> None:
        """Order the projection's rows as the stream's channels; halves of the sinusoid are swapped, as those are."""
        super().__init__()
        self.precision = precision
        self.norm = LoweredGlobalNorm(model.norm, torch.arange(model.config.in_channels))
        weight = model.project.weight[channels].mT
        self.weight = nn.Buffer(precision.narrow(weight, "embedding").contiguous())
        self.inv_freq = nn.Buffer(model.abs_pos_emb.inv_freq.clone())
        self.scale = nn.Buffer(model.abs_pos_emb.scale.clone())

    def forward(
        self, features: Float[Tensor, "b 1 n i"], positions: Float[Tensor, "1 1 n 1"]
    ) -> Float[Tensor, "b 1 n d"]:
        """Embed each frame at its position."""
        normed = self.precision.narrow(self.norm(features), "features_normed")
        angles = positions * self.inv_freq
        sinusoid = torch.cat((angles.cos(), angles.sin()), dim=-1) * self.scale
        product = widen(self.precision.multiply(normed, self.weight, "embedding"))
        return self.precision.narrow(product + sinusoid, RESIDUAL)


class MaskHead(nn.Module):
    """From the residual stream to the masks of those speakers that are used."""

    def __init__(self, model: Mossformer2Model, channels: Int[Tensor, " d"], precision: Precision) -> None:
        """Leave out the speakers that nobody asks for; what is output and what gates it are one product."""
        super().__init__()
        self.precision, self.num_sources, self.dim = precision, model.config.num_sources, model.config.dim
        layer_norm, global_norm = model.final_norms
        self.layer_norm = lower_norm(layer_norm, channels)
        self.global_norm = LoweredGlobalNorm(cast("GlobalNorm", global_norm), channels)
        self.slope = float(model.prelu.weight)
        rows = torch.arange(self.num_sources * self.dim)
        speakers, output, gate = model.to_speakers, model.to_output, model.to_gate
        self.speakers_weight = self._store(speakers.weight[rows][:, channels].mT, "speakers")
        self.speakers_bias = self._store(speakers.bias[rows], "speakers")
        self.output_weight = self._store(torch.cat((output.weight, gate.weight)).mT, "output")
        self.output_bias = self._store(torch.cat((output.bias, gate.bias)), "output")
        self.mask_weight = self._store(model.to_mask.weight.mT, "masks")

    def _store(self, weight: Tensor, name: str) -> nn.Buffer:
        return nn.Buffer(self.precision.narrow(weight, name).contiguous().clone())

    def forward(self, x: Float[Tensor, "b 1 n d"], embedding: Float[Tensor, "b 1 n d"]) -> Float[Tensor, "b n k o"]:
        """Return the masks, in fp32."""
        precision = self.precision
        trunk = self.global_norm(self.layer_norm(x)) + widen(embedding)
        trunk = mark(precision.narrow(trunk, RESIDUAL), "trunk", order="channels")
        speakers = precision.multiply(F.leaky_relu(trunk, self.slope), self.speakers_weight, "speakers")
        speakers = mark(precision.combine(torch.add, speakers, self.speakers_bias, "speakers"), "speakers")
        speakers = reshape(speakers, [0, -1, self.num_sources, self.dim])
        both = precision.multiply(speakers, self.output_weight, "output")
        output, gate = precision.combine(torch.add, both, self.output_bias, "output").chunk(2, dim=-1)
        gated = torch.tanh(output) * torch.sigmoid(gate)
        return torch.relu(widen(precision.multiply(gated, self.mask_weight, "masks")))


class Encoder(nn.Module):
    """From a waveform to frames, in fp32 in every precision: it is little work, and what is heard goes through it."""

    def __init__(self, model: SeparationModel) -> None:
        """Take the kernel of the reference."""
        super().__init__()
        self.kernel, self.hop = nn.Buffer(model.encoder.weight.unsqueeze(2).clone()), model.encoder.stride[0]

    def forward(self, waveform: Float[Tensor, "b t"]) -> Float[Tensor, "b 1 n i"]:
        """Return the frames."""
        plane = reshape(waveform, [0, 1, 1, -1])
        return torch.relu(F.conv2d(plane, self.kernel, stride=(1, self.hop))).permute(0, 2, 3, 1)


class Decoder(nn.Module):
    """From the frames of each speaker to waveforms, in fp32 in every precision."""

    def __init__(self, model: SeparationModel) -> None:
        """Take the kernel of the reference."""
        super().__init__()
        self.kernel, self.hop = nn.Buffer(model.decoder.weight.unsqueeze(2).clone()), model.decoder.stride[0]
        self.num_sources = model.config.num_sources

    def forward(self, masked: Float[Tensor, "b n k i"], num_samples: int) -> Float[Tensor, "b k t"]:
        """Return the waveforms, zero where no frame reaches."""
        plane = F.conv_transpose2d(masked.permute(0, 3, 2, 1), self.kernel, stride=(1, self.hop))  # (b, 1, k, t)
        sources = reshape(plane, [0, self.num_sources, -1])
        return F.pad(sources, (0, num_samples - sources.shape[2]))
