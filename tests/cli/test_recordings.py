"""``enhance`` and ``separate`` on files of any rate and number of channels, and what they refuse."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import pytest
import torch

from flash_export.models.gau import GauConfig, GauModel
from flash_export.models.mossformer2 import Mossformer2Config, WaveformFrames, build_mossformer2
from tests.cli.commands import check, invoke
from tests.cli.test_json import load_schema, read_promises

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FolderSharer

soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed")
pytest.importorskip("soxr", reason="soxr is not installed")

SIZES: dict[str, Any] = {"dim": 8, "depth": 1, "hidden_dim": 16, "qk_dim": 4, "chunk_size": 32, "fsmn_dim": 4}
THREADS = ("--threads", "1")


@pytest.fixture(scope="session")
def bundles(share_folder: FolderSharer) -> Path:
    """Export a model of each kind; not to be changed."""

    def write(folder: Path) -> None:
        torch.manual_seed(0)
        frames = WaveformFrames(kernel_size=16, sample_rate=8000)
        configs = {
            "enhance": Mossformer2Config(in_channels=180, out_channels=961, **SIZES),
            "separate": Mossformer2Config(in_channels=8, out_channels=8, fsmn="dilated", frames=frames, **SIZES),
        }
        for name, config in configs.items():
            build_mossformer2(config).save_pretrained(folder / f"{name}-model")
            limits = ("--max-seq-len", 2500 if name == "enhance" else 40000)
            check("onnx", folder / f"{name}-model", "-o", folder / name, *limits)
        check("onnx", folder / "enhance-model", "-o", folder / "waveform", "--waveform")

    return share_folder("audio-bundles", write)


def record(path: Path, rate: int, seconds: float, channels: int = 1, **options: Any) -> Path:
    samples = 0.1 * np.random.default_rng(0).standard_normal((round(rate * seconds), channels))
    soundfile.write(path, samples, rate, **options)
    return path


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_rate_length_channels_and_format_are_kept(bundles: Path, tmp_path: Path, rate: int, channels: int) -> None:
    source = record(tmp_path / "in.flac", rate, 4.3, channels, subtype="PCM_24")
    result = check("separate", bundles / "separate", source, "-o", tmp_path / "out", "--json", tmp_path / "r", *THREADS)
    facts = json.loads((tmp_path / "r").read_text())
    assert facts["files"] == [str(tmp_path / "out" / f"in_s{index}.flac") for index in (1, 2)]
    assert list(facts) == read_promises()["separate"] == read_promises()["enhance"]
    jsonschema.validate(facts, load_schema("separate"))
    assert facts["seconds"] == pytest.approx(4.3)
    assert f"took {facts['elapsed_s']:.1f} s on ort-cpu" in " ".join(result.stdout.split())
    for path in facts["files"]:
        info = soundfile.info(path)
        expected = (rate, channels, soundfile.info(source).frames, "PCM_24")
        assert (info.samplerate, info.channels, info.frames, info.subtype) == expected


def test_channels_are_processed_alone(bundles: Path, tmp_path: Path) -> None:
    source = record(tmp_path / "both.wav", 48000, 0.5, 2, subtype="FLOAT")
    samples, _ = soundfile.read(source)
    soundfile.write(tmp_path / "right.wav", samples[:, 1], 48000, subtype="FLOAT")
    for name in ("both", "right"):
        check("enhance", bundles / "enhance", tmp_path / f"{name}.wav", tmp_path / f"{name}-out.wav", *THREADS)
    both, right = (soundfile.read(tmp_path / f"{name}-out.wav", dtype="float32")[0] for name in ("both", "right"))
    assert np.abs(right).max() > 1e-4
    np.testing.assert_array_equal(both[:, 1], right)


def test_a_recording_of_the_model_s_rate_and_another_are_processed_alike(bundles: Path, tmp_path: Path) -> None:
    for rate in (8000, 16000):
        time = np.arange(4 * rate) / rate
        tone = sum(np.sin(2 * np.pi * hertz * time) for hertz in (210, 333, 900))
        soundfile.write(tmp_path / f"{rate}.wav", 0.02 * tone, rate, subtype="FLOAT")
        check("separate", bundles / "separate", tmp_path / f"{rate}.wav", "-o", tmp_path, *THREADS)
    low, high = (soundfile.read(tmp_path / f"{rate}_s1.wav")[0] for rate in (8000, 16000))
    assert np.corrcoef(high[::2][800:-800], low[800:-800])[0, 1] > 0.9


@pytest.mark.parametrize("seconds", [1.3, 21.0])  # as a whole, and in windows
def test_features_may_be_computed_in_the_graph(bundles: Path, tmp_path: Path, seconds: float) -> None:
    """Which by default takes what is processed as a whole."""
    source = record(tmp_path / "in.wav", 48000, seconds, subtype="FLOAT")
    for name in ("enhance", "waveform"):
        check("enhance", bundles / name, source, tmp_path / f"{name}.wav", *THREADS)
    outside, inside = (soundfile.read(tmp_path / f"{name}.wav")[0] for name in ("enhance", "waveform"))
    assert np.abs(outside).max() > 1e-4
    np.testing.assert_allclose(inside, outside, rtol=0, atol=2e-4 * np.abs(outside).max())


def test_a_graph_of_waveforms_is_validated_and_exported_again(bundles: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(bundles / "waveform", tmp_path / "waveform")
    lengths = "1920,2303,2304,14207,14208,20000"  # around one frame, and one chunk of 32
    check("validate", copied, "--seq-lens", lengths, "--no-latency", *THREADS, "--json", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert {row["status"] for row in report["rows"] if row["seq_len"]} == {"passed"}
    check("onnx", copied, "-o", tmp_path / "half", "--precision", "fp16", "--max-seq-len", 100_000)
    shapes = json.loads((tmp_path / "half" / "manifest.json").read_text())["interface"]["outputs"][0]["shape"]
    assert shapes == ["batch", "seq"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("separate-model", "the model takes a waveform as it is; leave --waveform out"),
        ("waveform", "the model takes a waveform as it is; leave --waveform out"),
        ("gau-model", "family gau is not for sound; leave --waveform out"),
        ("small-model", "makes masks of 8 frequencies of 8 features; --waveform is for 961 of 180"),
    ],
)
def test_a_model_that_takes_no_features_of_a_waveform(bundles: Path, tmp_path: Path, model: str, message: str) -> None:
    build_mossformer2(Mossformer2Config(in_channels=8, out_channels=8, **SIZES)).save_pretrained(
        tmp_path / "small-model"
    )
    GauModel(GauConfig(vocab_size=5, dim=8, depth=1, hidden_dim=8, qk_dim=4)).save_pretrained(tmp_path / "gau-model")
    folder = tmp_path if (tmp_path / model).exists() else bundles
    result = invoke("onnx", folder / model, "-o", tmp_path / "out", "--waveform")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("enhance", "separate", "in.wav", "out.wav"), "makes sources of waveform, wanted the mask of 961 frequencies"),
        (("separate", "enhance", "in.wav", "-o", "out"), "makes mask of features, wanted waveforms of a waveform"),
        (("enhance", "enhance", "text.wav", "out.wav"), "text.wav cannot be read as audio"),
        (("enhance", "enhance", "none.wav", "out.wav"), "none.wav cannot be read as audio"),
        (("enhance", "enhance", "empty.wav", "out.wav"), "empty.wav has no samples; give a file with sound in it"),
        (("enhance", "enhance", "short.wav", "out.wav"), "short.wav is 0.02 s long, the model needs 0.04 s"),
        (("enhance", "enhance", "nan.wav", "out.wav"), "nan.wav has samples that are not finite; give another file"),
        (("enhance", "enhance", "in.wav", "out.xyz"), "out.xyz has the ending of no format; use .wav, .flac or .ogg"),
        (("enhance", "enhance", "in.wav", "out.wav", "--window", "90"), "window=90 s is 4320000 samples at 48000 Hz"),
        (("separate", "separate", "in.wav", "-o", "out", "--window", "1e-3"), "window=0.001 s is 8 samples at 8000 Hz"),
        (
            ("separate", "separate", "in.wav", "-o", "out", "--window", "0"),
            "window=0 s is not usable; use a number above",
        ),
        (
            ("enhance", "enhance", "in.wav", "out.wav", "--window", "nan"),
            "window=nan s is not usable; use a number above",
        ),
        (("enhance", "enhance", "in.wav", "out.wav", "--window", "1e30"), "window=1e+30 s is not usable; use a number"),
        (("enhance", "enhance", "in.wav", "in.wav"), "in.wav is the recording itself, and would be replaced"),
        (("enhance", "enhance", "many.wav", "out.wav"), "many.wav has 65 channels, more than 64; give some of them"),
        (("enhance", "enhance", "in.wav", "out.wav", "--threads", "0"), "threads=0 is not usable"),
    ],
)
def test_what_does_not_fit_is_one_line(
    bundles: Path, tmp_path: Path, command: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "in.wav", 48000, 1)
    record(tmp_path / "short.wav", 48000, 0.02)
    record(tmp_path / "empty.wav", 48000, 0)
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "nan.wav", np.full(48000, np.nan), 48000, subtype="FLOAT")
    record(tmp_path / "many.wav", 48000, 0.1, 65)
    before = {path.name for path in tmp_path.iterdir()}
    result = invoke(command[0], bundles / command[1], *THREADS, *command[2:])
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} - {"out"} == before
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_file_that_is_there_stays_when_something_fails(bundles: Path, tmp_path: Path) -> None:
    target = record(tmp_path / "out.wav", 48000, 0.1)
    before = target.read_bytes()
    soundfile.write(tmp_path / "nan.wav", np.full(48000, np.nan), 48000, subtype="FLOAT")
    assert invoke("enhance", bundles / "enhance", tmp_path / "nan.wav", target).exit_code == 2
    assert target.read_bytes() == before
