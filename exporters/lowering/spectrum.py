"""From a waveform to features and spectra of its frames, and back, in export form: all of it in fp32.

Transforms are convolutions whose kernels are the waves themselves, with the window and all else that is linear folded
in. ONNX has ``STFT`` since opset 17, but for frames of 1,920 samples onnxruntime 1.32 is wrong by 2e-4 of the scale and
takes six times as long as for 2,048, and OpenVINO refuses it at a free length. The convolution is as exact as PyTorch's
transform in fp32, and every runtime has it.

Axes: b batch, t sample, n frame, w wave, k band, i feature, f frequency, m sample of a frame.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from flash_export.exporters.spelling import reshape
from flash_export.layers.spectrum import DELTA_REACH, FULL_SCALE, MIN_ENERGY, build_bands, build_window, weigh

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from flash_export.layers.spectrum import Frames

FP64 = torch.float64


def build_waves(num_samples: int, num_waves: int, padded_len: int) -> Float[Tensor, "w m"]:
    """Return real parts, and below them imaginary parts, of what a Fourier transform multiplies samples by."""
    angles = torch.outer(torch.arange(num_waves, dtype=FP64), torch.arange(num_samples, dtype=FP64))
    angles = angles * (2 * math.pi / padded_len)
    return torch.cat((angles.cos(), -angles.sin()))


class LoweredFeatures(nn.Module):
    """The filter bank of each frame, how it changes, and how that changes."""

    def __init__(self, frames: Frames) -> None:
        """Fold what is done to a frame before its transform into the waves."""
        super().__init__()
        self.hop = frames.hop
        done_to_frames = weigh(torch.eye(frames.length, dtype=FP64), frames)  # (m, m)
        waves = build_waves(frames.length, frames.padded_len // 2, frames.padded_len)
        self.waves = nn.Buffer((FULL_SCALE * done_to_frames @ waves.mT).mT.float()[:, None, None].contiguous())
        # The energy of a frequency is the sum of the squares of both parts.
        self.bands = nn.Buffer(build_bands(frames).repeat(2, 1).float())
        slopes = torch.arange(-DELTA_REACH, DELTA_REACH + 1, dtype=FP64)
        self.slopes = nn.Buffer((slopes / slopes.square().sum()).float().reshape(1, 1, -1, 1))

    def forward(self, plane: Float[Tensor, "b 1 1 t"]) -> Float[Tensor, "b 1 n i"]:
        """Return the features."""
        parts = F.conv2d(plane, self.waves, stride=(1, self.hop)).permute(0, 2, 3, 1)
        energies = ((parts * parts) @ self.bands).clamp(min=MIN_ENERGY).log()
        deltas = self._take_slopes(energies)
        return torch.cat((energies, deltas, self._take_slopes(deltas)), dim=-1)

    def _take_slopes(self, x: Float[Tensor, "b 1 n k"]) -> Float[Tensor, "b 1 n k"]:
        return F.conv2d(F.pad(x, (0, 0, DELTA_REACH, DELTA_REACH), mode="replicate"), self.slopes)


class LoweredSpectrum(nn.Module):
    """The spectrum of a waveform, times a mask, and the waveform that is nearest to that."""

    def __init__(self, frames: Frames) -> None:
        """Fold the window into the waves of both ways."""
        super().__init__()
        self.hop, self.num_frequencies = frames.hop, frames.num_frequencies
        window, counts = build_window(frames), torch.full((frames.num_frequencies, 1), 2.0, dtype=FP64)
        counts[0] = 1  # frequency zero, and half the sample rate in an even length, have no mirror image
        if frames.length % 2 == 0:
            counts[-1] = 1
        waves = build_waves(frames.length, frames.num_frequencies, frames.length) * window
        self.waves = nn.Buffer(waves.float()[:, None, None].contiguous())
        back = waves * counts.repeat(2, 1) / frames.length
        self.back = nn.Buffer(back.float()[:, None, None].contiguous())
        self.weight = nn.Buffer(window.square().float().reshape(1, 1, 1, -1))

    def forward(self, plane: Float[Tensor, "b 1 1 t"], mask: Float[Tensor, "b n 1 f"]) -> Float[Tensor, "b t"]:
        """Return what passes the mask, zero where no frame reaches."""
        stride = (1, self.hop)
        parts = reshape(F.conv2d(plane, self.waves, stride=stride), [0, 2, self.num_frequencies, -1])
        passed = reshape(parts * mask.permute(0, 2, 3, 1), [0, 2 * self.num_frequencies, 1, -1])
        summed = F.conv_transpose2d(passed, self.back, stride=stride)
        weights = F.conv_transpose2d(
            torch.ones_like(mask[:1, :, :, :1]).permute(0, 2, 3, 1), self.weight, stride=stride
        )
        speech = reshape(summed / weights, [0, -1])
        return F.pad(speech, (0, plane.shape[3] - speech.shape[1]))
