"""From a waveform to what speech enhancement looks at and works on, and back.

Source: Kaldi's filter banks as ``torchaudio.compliance.kaldi.fbank`` computes them, and its deltas; short-time Fourier
transforms as in clearvoice 0.1.2 (``utils/misc.py``), whose windows start at the first sample and are symmetric.
Waveforms are in units of 16-bit samples, up to 32,768, as Kaldi's are.

Axes: b batch, m sample, n frame, f frequency, k band of the filter bank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Complex, Float
    from torch import Tensor

FULL_SCALE = 32768.0
PREEMPHASIS = 0.97
LOWEST_HZ = 20.0  # of the filter bank
MIN_ENERGY = 2.0**-23  # the epsilon of float32
DELTA_REACH = 2  # frames on each side that a delta is computed of


@dataclass(frozen=True)
class Frames:
    """How a waveform is cut into overlapping frames.

    Attributes:
        sample_rate: Samples a second.
        length: Samples of a frame, and of its Fourier transform.
        hop: Samples from the start of a frame to that of the next. What is left at the end belongs to none.
        num_bands: Bands of the filter bank.
    """

    sample_rate: int
    length: int
    hop: int
    num_bands: int

    @property
    def num_frequencies(self) -> int:
        """Frequencies of a frame, from zero to half the sample rate."""
        return self.length // 2 + 1

    @property
    def padded_len(self) -> int:
        """Samples of the Fourier transform that features are computed of: a power of two."""
        return 1 << (self.length - 1).bit_length()

    @property
    def sizes(self) -> tuple[int, int]:
        """Features and frequencies of a frame."""
        return 3 * self.num_bands, self.num_frequencies


def compute_features(waveform: Float[Tensor, "b m"], frames: Frames) -> Float[Tensor, "b n 3*k"]:
    """Return the filter bank of each frame, how it changes, and how that changes."""
    energies = compute_filter_bank(waveform, frames)
    deltas = compute_deltas(energies)
    return torch.cat((energies, deltas, compute_deltas(deltas)), dim=-1)


def compute_filter_bank(waveform: Float[Tensor, "b m"], frames: Frames) -> Float[Tensor, "b n k"]:
    """Return the logarithm of the energy in each band of each frame, padded to a power of two, without dither."""
    cut = weigh(waveform.unfold(-1, frames.length, frames.hop), frames)  # (b, n, m)
    power = torch.fft.rfft(cut, frames.padded_len).abs().square()[..., :-1]  # the last frequency is in no band
    energies = power @ build_bands(frames).to(power)
    return energies.clamp(min=MIN_ENERGY).log()


def weigh(cut: Float[Tensor, "*b m"], frames: Frames) -> Float[Tensor, "*b m"]:
    """Take the mean off each frame, raise high frequencies, and apply a Hamming window: a linear map."""
    cut = cut - cut.mean(dim=-1, keepdim=True)
    before = torch.cat((cut[..., :1], cut[..., :-1]), dim=-1)
    return (cut - PREEMPHASIS * before) * build_window(frames).to(cut)


def compute_deltas(x: Float[Tensor, "b n k"]) -> Float[Tensor, "b n k"]:
    """Return the slope of each band over five frames, the first and the last frame repeated beyond the ends."""
    padded = F.pad(x.mT, (DELTA_REACH, DELTA_REACH), mode="replicate").mT
    slopes = torch.zeros_like(x)
    for distance in range(1, DELTA_REACH + 1):
        later = padded[:, DELTA_REACH + distance : DELTA_REACH + distance + x.shape[1]]
        slopes = slopes + distance * (later - padded[:, DELTA_REACH - distance : DELTA_REACH - distance + x.shape[1]])
    return slopes / sum(2 * distance**2 for distance in range(1, DELTA_REACH + 1))


def compute_spectrum(waveform: Float[Tensor, "b m"], frames: Frames) -> Complex[Tensor, "b n f"]:
    """Return the short-time Fourier transform."""
    cut = waveform.unfold(-1, frames.length, frames.hop)
    return torch.fft.rfft(cut * build_window(frames).to(cut))


def invert_spectrum(spectrum: Complex[Tensor, "b n f"], frames: Frames, num_samples: int) -> Float[Tensor, "b m"]:
    """Return the waveform whose transform is nearest to a spectrum; zero where no frame reaches."""
    window = build_window(frames)
    cut = torch.fft.irfft(spectrum, frames.length)
    window = window.to(cut)
    summed, weights = (_overlap(x, frames) for x in (cut * window, window.square().expand(1, cut.shape[1], -1)))
    return F.pad(summed / weights, (0, num_samples - summed.shape[-1]))


def _overlap(cut: Float[Tensor, "b n m"], frames: Frames) -> Float[Tensor, "b m"]:
    """Add up frames where they lie."""
    num_samples = (cut.shape[1] - 1) * frames.hop + frames.length
    return F.fold(cut.mT, (1, num_samples), (1, frames.length), stride=(1, frames.hop))[:, 0, 0]


def build_window(frames: Frames) -> Float[Tensor, " m"]:
    """Return the symmetric Hamming window, in float64."""
    return torch.hamming_window(frames.length, periodic=False, dtype=torch.float64)


def build_bands(frames: Frames) -> Float[Tensor, "f k"]:
    """Return what each band takes of each frequency but the last: triangles on the mel scale, in float64."""
    low, high = (_to_mel(torch.tensor(hz, dtype=torch.float64)) for hz in (LOWEST_HZ, frames.sample_rate / 2))
    edges = low + torch.arange(frames.num_bands + 2, dtype=torch.float64) * (high - low) / (frames.num_bands + 1)
    hertz = torch.arange(frames.padded_len // 2, dtype=torch.float64) * frames.sample_rate / frames.padded_len
    mel = _to_mel(hertz)[:, None]
    rising = (mel - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mel) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


def _to_mel(hertz: Float[Tensor, ...]) -> Float[Tensor, ...]:
    return 1127.0 * (1.0 + hertz / 700.0).log()
