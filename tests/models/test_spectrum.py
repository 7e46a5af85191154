"""Filter banks and spectra of speech, against torchaudio's own files and PyTorch's transforms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flash_export.layers.spectrum import (
    FULL_SCALE,
    Frames,
    compute_deltas,
    compute_features,
    compute_filter_bank,
    compute_spectrum,
    invert_spectrum,
)
from flash_export.originals.installed import ModelFiles
from tests.models.oracles import import_oracle

CLEARVOICE = Frames(48000, 1920, 384, 60)
SMALL = Frames(8000, 100, 20, 8)


@pytest.fixture(scope="module")
def kaldi() -> Any:
    (module,) = import_oracle("torchaudio==2.11.1", ModelFiles("torchaudio", ("compliance.kaldi",), ("compliance",)))
    return module


def count(num_samples: int, frames: Frames) -> int:
    return (num_samples - frames.length) // frames.hop + 1


def draw(num_samples: int, seed: int = 0, batch: int = 1) -> torch.Tensor:
    torch.manual_seed(seed)
    return 0.1 * FULL_SCALE * torch.randn(batch, num_samples, dtype=torch.float64)


@pytest.mark.peer
@pytest.mark.parametrize(("frames", "num_samples"), [(CLEARVOICE, 48000), (CLEARVOICE, 1920), (SMALL, 777)])
@pytest.mark.parametrize("volume", [1.0, 1e-4, 0.0])
def test_filter_bank_is_torchaudio_s(kaldi: Any, frames: Frames, num_samples: int, volume: float) -> None:
    waveform = volume * draw(num_samples)
    theirs = kaldi.fbank(
        waveform,
        dither=0.0,
        frame_length=frames.length / frames.sample_rate * 1000,
        frame_shift=frames.hop / frames.sample_rate * 1000,
        num_mel_bins=frames.num_bands,
        sample_frequency=frames.sample_rate,
        window_type="hamming",
    )
    ours = compute_filter_bank(waveform, frames)[0]
    assert ours.shape == theirs.shape == (count(num_samples, frames), frames.num_bands)
    torch.testing.assert_close(ours, theirs.double(), rtol=0, atol=2e-5)  # its bands are rounded to float32


@pytest.mark.filterwarnings("ignore:The length of signal is shorter")
@settings(deadline=None, max_examples=30)
@given(num_samples=st.integers(100, 400), batch=st.integers(1, 3), seed=st.integers(0, 99))
def test_spectrum_and_its_inverse_are_pytorch_s(num_samples: int, batch: int, seed: int) -> None:
    waveform = draw(num_samples, seed, batch)
    window = torch.hamming_window(SMALL.length, periodic=False, dtype=torch.float64)
    sizes: dict[str, Any] = {"n_fft": SMALL.length, "hop_length": SMALL.hop, "window": window, "center": False}
    theirs = torch.stft(waveform, **sizes, return_complex=True)
    ours = compute_spectrum(waveform, SMALL)
    torch.testing.assert_close(ours.mT, theirs, rtol=0, atol=1e-8)
    mask = torch.rand(ours.shape, dtype=torch.float64)
    back = torch.istft((ours * mask).mT, **sizes, length=num_samples)
    torch.testing.assert_close(invert_spectrum(ours * mask, SMALL, num_samples), back, rtol=0, atol=1e-8)


def test_what_was_not_changed_comes_back() -> None:
    waveform = draw(SMALL.length + 30 * SMALL.hop + 7)
    back = invert_spectrum(compute_spectrum(waveform, SMALL), SMALL, waveform.shape[1])
    torch.testing.assert_close(back[:, :-7], waveform[:, :-7])
    assert back[:, -7:].abs().max() == 0


def test_deltas_are_slopes() -> None:
    line = 3.0 * torch.arange(9.0)[None, :, None]
    assert compute_deltas(line)[0, 2:-2, 0].tolist() == [3.0] * 5
    x = torch.randn(1, 6, 2, dtype=torch.float64)
    index = torch.arange(-2, 8).clamp(0, 5)
    naive = [
        (x[0, index[t + 3]] - x[0, index[t + 1]] + 2 * (x[0, index[t + 4]] - x[0, index[t]])) / 10 for t in range(6)
    ]
    torch.testing.assert_close(compute_deltas(x)[0], torch.stack(naive))


def test_features_are_bands_and_two_orders_of_deltas() -> None:
    waveform = draw(500)
    features = compute_features(waveform, SMALL)
    assert features.shape == (1, count(500, SMALL), 24)
    torch.testing.assert_close(features[..., 16:], compute_deltas(features[..., 8:16]))
