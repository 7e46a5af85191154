"""A SimCC head of RTMPose from mmpose's file to an engine, with the commands that a user types."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from flash_export.bundle.bundle import Bundle
from tests.cli.commands import check, invoke
from tests.cli.planting import plant_fault
from tests.models.mmpose_release import import_mmpose

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FolderSharer

HEAD: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 17,
    "input_size": [48, 64],
    "in_featuremap_size": [6, 8],
    "simcc_split_ratio": 2.0,
    "final_layer_kernel_size": 3,
    "gau_cfg": {
        "hidden_dims": 32,
        "s": 16,
        "expansion_factor": 2,
        "dropout_rate": 0.0,
        "drop_path": 0.0,
        "act_fn": "SiLU",
        "use_rel_bias": False,
        "pos_enc": False,
    },
}
FAMILY = ("--family", "rtmpose_gau")
THREADS = ("--threads", "1")


@pytest.fixture(scope="session")
def files(share_folder: FolderSharer) -> Path:
    """Save a head of mmpose's own, its block alone, its arguments and features of 12 images; not to be changed."""

    def write(folder: Path) -> None:
        torch.manual_seed(0)
        head = import_mmpose().head(**HEAD).eval()
        weights = head.state_dict()
        torch.save({f"head.{name}": tensor for name, tensor in weights.items()}, folder / "rtmpose.pth")
        block = {name.removeprefix("gau."): tensor for name, tensor in weights.items() if name.startswith("gau.")}
        torch.save(block, folder / "block.pth")
        (folder / "head.json").write_text(json.dumps(HEAD))
        features = np.random.default_rng(0).standard_normal((12, 16, 8, 6), dtype=np.float32)
        np.savez(folder / "features.npz", features=features)

    return share_folder("rtmpose", write)


@pytest.fixture(scope="session")
def head_bundle(files: Path, share_folder: FolderSharer) -> Bundle:
    """Export the head; not to be changed."""

    def write(folder: Path) -> None:
        check("onnx", files / "rtmpose.pth", "-o", folder / "head", *FAMILY, "--config", files / "head.json")

    return Bundle.open(share_folder("rtmpose-head", write) / "head")


@pytest.fixture
def bundle(head_bundle: Bundle, tmp_path: Path) -> Bundle:
    """Copy the exported head, to be changed at will."""
    return Bundle.open(shutil.copytree(head_bundle.path, tmp_path / "head"))


def test_export_says_what_it_made(files: Path, tmp_path: Path) -> None:
    result = check("onnx", files / "rtmpose.pth", "-o", tmp_path / "b", *FAMILY, "--config", files / "head.json")
    text = " ".join(result.stdout.split())
    assert "inputs features float32 (batch, 16, 8, 6)" in text
    assert "outputs simcc_x float32 (batch, 17, 96), simcc_y float32 (batch, 17, 128)" in text
    assert "head.image_width 48, head.image_height 64, head.bins_per_pixel 2.0" in text
    assert "ranges batch 1 to 64, seq 17 nodes 32, 22 in its block" in text
    assert "FLOPs per keypoint: " in " ".join(check("inspect", tmp_path / "b").stdout.split())


def test_validation_speaks_of_keypoints_and_pixels(bundle: Bundle, files: Path) -> None:
    result = check("validate", bundle.path, "--no-latency", "--data", files / "features.npz", *THREADS)
    assert re.search(r"PASSED +\d+ passed, 0 failed", result.stdout)
    assert "Mean distance: 0 px, in the worst check; within half a pixel 100%" in result.stdout
    assert not re.search(r"\b(token|logit|vocab)", result.stdout)
    page = (bundle.path / "reports" / "report.html").read_text()
    assert "17 keypoints" in page
    assert "token" not in page


@pytest.mark.parametrize(
    ("weight", "place"),
    [
        ("maps.conv_bias", "feature maps of the keypoints"),
        ("maps.weight", "vectors of the keypoints"),
        ("layers.0.projection_weight", "block 0, gates"),
        ("layers.0.out_weight", "block 0, output of the block"),
        ("classifiers.y_weight", "simcc_y"),
    ],
)
def test_a_fault_is_refused_and_found_where_it_is(bundle: Bundle, weight: str, place: str) -> None:
    plant_fault(bundle, weight, lambda values: values * np.float32(1.01))
    assert invoke("validate", bundle.path, "--no-latency", *THREADS).exit_code == 1
    result = invoke("bisect", bundle.path, *THREADS)
    assert result.exit_code == 1
    assert f"FOUND  {place[0].upper()}{place[1:]}" in result.stdout


def test_a_good_head_bisects_clean(head_bundle: Bundle) -> None:
    result = check("bisect", head_bundle.path, *THREADS)
    assert "12 quantities are within their limits at 2 x 17" in result.stdout


def test_ranges_have_one_length_and_no_tokens(head_bundle: Bundle) -> None:
    result = check("profile-ranges", head_bundle.path, *THREADS)
    assert "Measured on random inputs, 17 keypoints;" in result.stdout
    assert "sum of squares in the norm" in result.stdout
    assert "last norm" not in result.stdout  # there is one, before the unit
    assert "token" not in result.stdout


def test_it_is_quantized_compared_and_validated_again(head_bundle: Bundle, files: Path, tmp_path: Path) -> None:
    data = ("--data", files / "features.npz")
    refused = invoke("quantize", head_bundle.path, "-o", tmp_path / "int8", "--scheme", "int8")
    assert refused.exit_code == 2
    assert "has no held-out data to calibrate with" in refused.stderr
    made = check("quantize", head_bundle.path, "-o", tmp_path / "int8", *data, *THREADS)
    assert re.search(r"Loss: 0\.\d+%, accepted 0\.50%", made.stdout)
    assert check("validate", tmp_path / "int8", "--no-latency", *THREADS)
    page = ("--html", tmp_path / "page.html")
    compared = check(
        "compare", head_bundle.path, tmp_path / "int8", *data, "--no-latency", *THREADS, *page, "--json", "-"
    )
    first, second = json.loads(compared.stdout)["entries"]
    assert first["quality"]["measures"] == {"pixel_error": 0, "within_half_pixel": 1}
    assert second["quality"]["measures"]["within_half_pixel"] >= 0.995  # what the budget says of keypoints
    text = (tmp_path / "page.html").read_text().replace("int8-token", "")
    assert "How far the decoded keypoints are from the original" in text
    assert not re.search("token|byte per|per byte", text)


def test_engines_have_a_batch_that_is_free_or_fixed(head_bundle: Bundle, files: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="engines are built here with TensorRT-RTX alone")
    check(
        "onnx", files / "rtmpose.pth", "-o", tmp_path / "fixed", *FAMILY, "--config", files / "head.json", "--batch", 4
    )
    built = check("trt", tmp_path / "fixed", "--compute-capability", "8.9")
    assert re.search(r"profiles +none: every size is fixed", built.stdout)
    free = shutil.copytree(head_bundle.path, tmp_path / "free")
    assert re.search(r"profiles +1:1:8", check("trt", free, "--compute-capability", "8.9").stdout)


def test_the_block_alone_maps_vectors_to_vectors(files: Path, tmp_path: Path) -> None:
    told = [f"--set={one}" for one in ("act_fn=SiLU", "pos_enc=false", "num_token=17")]
    result = check("onnx", files / "block.pth", "-o", tmp_path / "block", *FAMILY, *told)
    assert "features float32 (batch, 17, 32)" in " ".join(result.stdout.split())
    validated = check("validate", tmp_path / "block", "--no-latency", *THREADS)
    assert "SI-SDR" in validated.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "--prompt", "a"), "is not causal"),
        (("validate", "--seq-lens", "16"), "seq_len=16 is below the graph's minimum 17"),
        (("validate", "--data", "{files}/wrong.npz"), "features"),
    ],
)
def test_what_does_not_fit_is_one_line(
    head_bundle: Bundle, files: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    np.savez(tmp_path / "wrong.npz", features=np.zeros((2, 16, 6, 8), np.float32))  # height and width exchanged
    command, *rest = (one.replace("{files}", str(tmp_path)) for one in arguments)
    result = invoke(command, head_bundle.path, *rest)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
