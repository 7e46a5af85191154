"""Whole recordings, against clearvoice 0.1.2's own decoding of the same models, wherever that writes something."""

from __future__ import annotations

import types
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from flash_export.audio.recordings import enhance, separate
from flash_export.audio.session import Session, enhance_window
from flash_export.layers.spectrum import compute_deltas
from flash_export.models.mossformer2 import (
    ENHANCEMENT_FRAMES,
    Mossformer2Config,
    WaveformFrames,
    build_mossformer2,
)
from flash_export.originals.installed import ModelFiles
from tests.models.oracles import import_oracle

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.models.mossformer2 import Mossformer2Model

soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed")
pytest.importorskip("soxr", reason="soxr is not installed")
pytestmark = pytest.mark.peer

RATE = 400  # samples per second, so that windows of seconds are small


@pytest.fixture(scope="module")
def decode() -> Any:
    """clearvoice's decoding, with torchaudio's filter banks without their random dither."""
    (kaldi,) = import_oracle("torchaudio==2.11.1", ModelFiles("torchaudio", ("compliance.kaldi",), ("compliance",)))

    def fbank(waveform: torch.Tensor, *, dither: float, **options: Any) -> torch.Tensor:
        assert dither == 1.0
        return kaldi.fbank(waveform, dither=0.0, **options)

    def deltas(x: torch.Tensor) -> torch.Tensor:
        return compute_deltas(x.mT[None])[0].mT

    torchaudio = {
        "compliance": types.SimpleNamespace(kaldi=types.SimpleNamespace(fbank=fbank)),
        "functional": types.SimpleNamespace(compute_deltas=deltas),
    }
    names = ("librosa", "joblib", "tqdm", "soundfile", "cv2", "python_speech_features", "scipy", "scipy.io")
    stand_ins: dict[str, dict[str, Any]] = {name: {} for name in names}
    stand_ins |= {"joblib": {"Parallel": None, "delayed": None}, "torchaudio": torchaudio}
    stand_ins["clearvoice.utils.bandwidth_sub"] = {"bandwidth_sub": None}
    stand_ins["clearvoice.dataloader.meldataset"] = {"mel_spectrogram": None}
    files = ModelFiles("clearvoice", ("utils.decode",), ("utils", "dataloader"), stand_ins)
    (module,) = import_oracle("clearvoice==0.1.2", files)
    return module


def make_model(**changes: Any) -> Mossformer2Model:
    torch.manual_seed(0)
    sizes = {"in_channels": 8, "dim": 8, "depth": 1, "hidden_dim": 16, "out_channels": 8, "qk_dim": 4}
    config = Mossformer2Config(**{**sizes, "chunk_size": 16, "fsmn_dim": 4, **changes})
    model = build_mossformer2(config).eval().requires_grad_(requires_grad=False)
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("seconds", [0.3, 1.999, 2.0, 2.5, 3.4, 3.5, 5.0, 6.25, 8.1, 20.4, 60.0, 61.7])
def test_separation(decode: Any, tmp_path: Path, seconds: float) -> None:
    model = make_model(fsmn="dilated", frames=WaveformFrames(kernel_size=4, sample_rate=RATE))
    samples = 0.1 * np.random.default_rng(0).standard_normal(round(seconds * RATE)).astype(np.float32)
    arguments = types.SimpleNamespace(sampling_rate=RATE, decode_window=2, one_time_decode_length=2, num_spks=2)

    def run(window: torch.Tensor) -> list[torch.Tensor]:
        return list(model(window).unbind(1))

    theirs = decode.decode_one_audio_mossformer2_ss_16k(run, "cpu", samples[None], arguments)
    session = Session(RATE, 2, 6, 10**6, lambda x: model(torch.from_numpy(x)[None])[0].numpy())
    soundfile.write(tmp_path / "mix.wav", samples, RATE, subtype="FLOAT")
    result = separate(session, tmp_path / "mix.wav", tmp_path / "out", backend="test")
    assert result.files == tuple(str(tmp_path / "out" / f"mix_s{index}.wav") for index in (1, 2))
    for path, wanted in zip(result.files, theirs, strict=True):
        found, rate = soundfile.read(path, dtype="float32")
        assert (rate, len(found)) == (RATE, len(samples))
        wanted = wanted[: len(samples)]
        # Of a recording that ends with a window, or in the edge of the second one, clearvoice leaves the end at zero.
        written = {3.4: 1300, 3.5: 1300, 5.0: 1900}.get(seconds, len(wanted))
        assert np.abs(wanted[written:]).max(initial=0) == 0
        assert written == len(wanted) or np.square(found[written:]).mean() > 0.3 * np.square(found).mean()
        np.testing.assert_allclose(found[:written], wanted[:written], rtol=0, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("seconds", [0.04, 0.5, 20.0, 20.5, 60.3])
@pytest.mark.parametrize("takes", ["features", "waveform"])
def test_enhancement(decode: Any, tmp_path: Path, seconds: float, takes: str) -> None:
    frames = ENHANCEMENT_FRAMES
    model = make_model(in_channels=180, out_channels=961)
    samples = 0.1 * np.random.default_rng(0).standard_normal(round(seconds * frames.sample_rate)).astype(np.float32)
    arguments = types.SimpleNamespace(
        sampling_rate=frames.sample_rate,
        decode_window=4,
        one_time_decode_length=20,
        win_type="hamming",
        win_len=1920,
        win_inc=384,
        fft_len=1920,
        num_mels=60,
    )

    def run(features: torch.Tensor) -> list[torch.Tensor]:
        return [model(features)]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = decode.decode_one_audio_mossformer2_se_48k(run, "cpu", samples[None], arguments)[: len(samples)]
    runner: Any = types.SimpleNamespace(
        run=lambda inputs: {"mask": model(torch.from_numpy(inputs["features"])).numpy()}
    )
    hearing = build_mossformer2(model.config.take_waveform()).eval()
    hearing.load_state_dict(model.state_dict())

    def clean(window: np.ndarray) -> np.ndarray:
        if takes == "features":
            return enhance_window(runner, window, frames)
        with torch.inference_mode():
            return hearing(torch.from_numpy(window)[None]).numpy()

    session = Session(frames.sample_rate, 1, frames.length, 10**7, clean)
    soundfile.write(tmp_path / "noisy.wav", samples, frames.sample_rate, subtype="FLOAT")
    enhance(session, tmp_path / "noisy.wav", tmp_path / "clean.wav", backend="test")
    found, _ = soundfile.read(tmp_path / "clean.wav", dtype="float32")
    scale = np.abs(theirs).max()
    assert scale > 1e-3
    np.testing.assert_allclose(found, theirs, rtol=0, atol=2e-4 * scale)
