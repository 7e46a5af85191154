"""A MossFormer2 from clearvoice's folder to an engine, with the commands that a user types."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from flash_export.bundle.bundle import Bundle
from tests.cli.commands import check, invoke
from tests.cli.planting import plant_fault
from tests.models.clearvoice_release import import_clearvoice, randomise

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from tests.conftest import FolderSharer

SIZES = {"chunk_size": 16, "qk_dim": 8, "fsmn_dim": 8}
FAMILY = ("--family", "mossformer2", "--set", "group_size=16")
RATE = ("--set", "sampling_rate=8000")
THREADS = ("--threads", "1")


def save_folder(model: nn.Module, folder: Path) -> None:
    """Write a folder as clearvoice reads it, of weights that attend mildly."""
    randomise(model, 0)
    tensors = {
        name: tensor * (0.4 if name.endswith(("gamma", "beta")) else 1) for name, tensor in model.state_dict().items()
    }
    folder.mkdir()
    torch.save({"model": {f"module.{name}": x.float() for name, x in tensors.items()}, "epoch": 9}, folder / "best.pt")
    (folder / "last_best_checkpoint").write_text("best.pt\n")


@pytest.fixture(scope="session")
def files(share_folder: FolderSharer) -> Path:
    """Save a model of enhancement and one of separation, and features; not to be changed."""

    def write(folder: Path) -> None:
        library = import_clearvoice()
        save_folder(library.build_enhancement(12, 16, 21, depth=2, **SIZES), folder / "se")
        save_folder(library.build_separation(16, depth=1, kernel_size=8, **SIZES), folder / "ss")
        features = np.random.default_rng(0).standard_normal((4, 128, 12)).astype(np.float32)
        np.savez(folder / "features.npz", features=features)

    return share_folder("mossformer2", write)


@pytest.fixture(scope="session")
def enhancement(files: Path, share_folder: FolderSharer) -> Bundle:
    """Export the model of enhancement; not to be changed."""
    data = ("--heldout", files / "features.npz", "--max-seq-len", 128)

    def write(folder: Path) -> None:
        check("onnx", files / "se", "-o", folder / "bundle", *FAMILY, *data)

    return Bundle.open(share_folder("mossformer2-se", write) / "bundle")


@pytest.fixture(scope="session")
def separation(files: Path, share_folder: FolderSharer) -> Bundle:
    """Export the model of separation; not to be changed."""

    def write(folder: Path) -> None:
        result = check("onnx", files / "ss", "-o", folder / "bundle", *FAMILY, *RATE, "--max-seq-len", 400)
        (folder / "output.txt").write_text(result.stdout)

    return Bundle.open(share_folder("mossformer2-ss", write) / "bundle")


def copy(bundle: Bundle, folder: Path) -> Bundle:
    """Copy an exported model, to be changed at will."""
    return Bundle.open(shutil.copytree(bundle.path, folder / "bundle"))


def test_export_says_what_it_was_given(separation: Bundle) -> None:
    text = " ".join((separation.path.parent / "output.txt").read_text().split())
    assert text.startswith("Exported best.pt to")
    assert "fsmn dilated" in text
    assert "frames.kernel_size 8, frames.sample_rate 8000" in text
    assert "inputs waveform float32 (batch, seq) outputs sources float32 (batch, 2, seq)" in text
    assert "ranges batch 1 to 64, seq 12 to 400 nodes 223, 132 in its block" in text
    assert "note names are under model.module in the file" in text
    assert "assumed" not in text


def test_enhancement_is_validated_by_frames(enhancement: Bundle, tmp_path: Path) -> None:
    result = check("validate", copy(enhancement, tmp_path).path, "--no-latency", *THREADS)
    assert re.search(r"PASSED +\d+ passed, 0 failed", result.stdout)
    assert "1 to 128 frames long" in " ".join(result.stdout.split())
    assert re.search(r"ort-cpu +15-16 +passed", result.stdout)
    assert "SI-SDR (dB)" in result.stdout


def test_separation_is_validated_by_samples_around_its_chunk(separation: Bundle, tmp_path: Path) -> None:
    """Sixteen frames of eight samples, one every four, are 68 samples; 71 are not yet another frame."""
    result = check("validate", copy(separation, tmp_path).path, "--no-latency", *THREADS, "--json", "-")
    report = json.loads(result.stdout)
    lengths = {row["seq_len"] for row in report["rows"] if row["status"] == "passed"}
    assert {12, 13, 15, 64, 68, 69, 71, 72, 400} <= lengths
    assert not [row for row in report["rows"] if row["status"] == "failed"]


@pytest.mark.parametrize("name", ["enhancement", "separation"])
def test_a_good_graph_bisects_clean(name: str, request: pytest.FixtureRequest) -> None:
    result = check("bisect", request.getfixturevalue(name).path, *THREADS)
    count = {"enhancement": 42, "separation": 24}[name]
    assert f"CLEAN  No fault found: {count} quantities" in result.stdout


@pytest.mark.parametrize(
    ("name", "weight", "place"),
    [
        ("enhancement", "layers.1.attention.to_value.weight", "Block 1, values"),
        ("separation", "layers.0.memory.fsmn.memory.stages.1.kernel", "Block 0, output of the memory"),
        ("separation", "decoder.kernel", "Sources"),
        ("enhancement", "embedding.weight", "Projected frames and their positions"),
        ("enhancement", "layers.0.out.conv.kernel", "Block 0, output of the attention"),
        ("enhancement", "layers.0.memory.reduce_weight", "Block 0, input of the memory"),
        pytest.param(
            "enhancement", "layers.1.memory.expand_weight", "Block 1, output of the block", marks=pytest.mark.slow
        ),
        ("enhancement", "head.global_norm.bias", "Output of all blocks, normed"),
        ("enhancement", "head.mask_weight", "Mask"),
        ("separation", "encoder.kernel", "Encoded frames"),
        ("separation", "layers.0.attention.heads.beta", "Block 0, quadratic queries"),
    ],
)
def test_a_fault_is_refused_and_found_where_it_is(
    name: str, weight: str, place: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle = copy(request.getfixturevalue(name), tmp_path)

    def spoil(values: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(0).standard_normal(values.shape)
        return (values + 0.05 * noise).astype(np.float32)

    plant_fault(bundle, weight, spoil)
    assert invoke("validate", bundle.path, "--no-latency", "--seq-lens", "33,101", *THREADS).exit_code == 1
    result = invoke("bisect", bundle.path, *THREADS)
    assert result.exit_code == 1
    assert f"FOUND  {place}" in " ".join(result.stdout.split("\n"))


@pytest.mark.slow
def test_ranges_are_profiled(separation: Bundle) -> None:
    result = check("profile-ranges", separation.path, *THREADS, "--json", "-")
    rows = {row["name"]: row for row in json.loads(result.stdout)["rows"]}
    assert rows["layers.0.norm_squares"]["held"] == "always"
    assert {"encoded", "layers.0.gated", "speakers"} <= rows.keys()


@pytest.mark.slow
def test_it_is_quantized_compared_and_validated_again(enhancement: Bundle, tmp_path: Path) -> None:
    made = check("quantize", enhancement.path, "-o", tmp_path / "int8", *THREADS)
    for name in ("layers.0.attention.to_gate", "layers.1.out", "layers.1.memory.to_u", "head.mask"):
        assert re.search(rf"{name} +int8", made.stdout)
    assert check("validate", tmp_path / "int8", "--no-latency", "--seq-lens", "1,33", *THREADS)
    compared = check("compare", enhancement.path, tmp_path / "int8", "--no-latency", *THREADS, "--json", "-")
    first, second = (entry["quality"]["measures"]["si_sdr_db"] for entry in json.loads(compared.stdout)["entries"])
    assert first > 80 > second > 15


@pytest.mark.slow
def test_fp16_is_validated_and_built(files: Path, tmp_path: Path) -> None:
    options = ("--max-seq-len", 400, "--precision", "fp16")
    check("onnx", files / "ss", "-o", tmp_path / "half", *FAMILY, *RATE, *options)
    assert check("validate", tmp_path / "half", "--no-latency", "--seq-lens", "12,71,400", *THREADS)
    pytest.importorskip("tensorrt_rtx", reason="engines are built here with TensorRT-RTX alone")
    assert "float16" in check("trt", tmp_path / "half", "--compute-capability", "8.9").stdout


@pytest.mark.slow
def test_an_engine_of_waveforms_is_built(separation: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="engines are built here with TensorRT-RTX alone")
    built = check("trt", copy(separation, tmp_path).path, "--compute-capability", "8.9")
    assert re.search(r"profiles +1x12:1x400:8x400", built.stdout)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("generate", "{bundle}", "--prompt", "a"), "holds a model that is not causal"),
        (("onnx", "{files}/ss", "-o", "{bundle}x", *FAMILY), "weights do not tell sampling_rate; give"),
        (("onnx", "{files}/ss", "-o", "{bundle}x", *FAMILY, *RATE, "--max-seq-len", "11"), "below the 12 samples"),
        (("onnx", "{files}/se", "-o", "{bundle}x", "--family", "gau", "--assume-defaults"), "in the checkpoint"),
        (
            ("onnx", "{bundle}", "-o", "{bundle}x", "--graphs", "forward,decode"),
            "MossFormer2 norms over and attends to the whole of a rec",
        ),
        (("validate", "{bundle}", "--seq-lens", "11"), "is below"),
    ],
)
def test_what_does_not_fit_is_one_line(separation: Bundle, files: Path, command: tuple[str, ...], message: str) -> None:
    parts = (part.replace("{bundle}", str(separation.path)).replace("{files}", str(files)) for part in command)
    result = invoke(*parts)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
