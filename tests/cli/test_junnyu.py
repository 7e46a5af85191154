"""Models of JunnYu's from the library's file to an engine, with the commands that a user types."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch

from flash_export.bundle.bundle import Bundle
from flash_export.models.flash_quad import FlashQuadConfig
from tests.cli.commands import check, invoke
from tests.cli.planting import plant_fault
from tests.models.junnyu_names import FLASH, make_flash, make_flash_quad, name_flash, name_flash_quad

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

    from flash_export.models.flash_quad import FlashQuadLayer
    from tests.conftest import FolderSharer

CONFIG: dict[str, Any] = {
    "model_type": "flash_quad",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "s": 16,
    "expansion_factor": 2,
    "max_position_embeddings": 128,
    "norm_type": "scale_norm",
    "hidden_act": "silu",
    "layer_norm_eps": 1e-5,
}
FAMILY = ("--family", "flash_quad")
THREADS = ("--threads", "1")
LENGTHS = ("--seq-lens", "1,5,32")


@pytest.fixture(scope="session")
def files(share_folder: FolderSharer) -> Path:
    """Save a model by the library's names, its config, and tokens; not to be changed."""

    def write(folder: Path) -> None:
        model = make_flash_quad(FlashQuadConfig(64, 32, 2, 64, 16, max_positions=128))
        for layer in cast("list[FlashQuadLayer]", model.layers):
            layer.w[:] = 0.2 * layer.w  # so that the attention over all positions does not drown those over few
        torch.save(name_flash_quad(model), folder / "pytorch_model.bin")
        (folder / "config.json").write_text(json.dumps(CONFIG))
        np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, 64, 2000))

    return share_folder("flash-quad", write)


def export(files: Path, target: Path, *options: str) -> Result:
    given = ("--config", files / "config.json", "--heldout", files / "tokens.npy")
    return check("onnx", files / "pytorch_model.bin", "-o", target, *FAMILY, *given, *options)


@pytest.fixture(scope="session")
def exported(files: Path, share_folder: FolderSharer) -> Path:
    """Export the model, and keep what the command prints; not to be changed."""

    def write(folder: Path) -> None:
        (folder / "stdout.txt").write_text(export(files, folder / "bundle").stdout)

    return share_folder("flash-quad-bundle", write)


@pytest.fixture(scope="session")
def flash_quad_bundle(exported: Path) -> Bundle:
    """Open the exported model; not to be changed."""
    return Bundle.open(exported / "bundle")


@pytest.fixture
def bundle(flash_quad_bundle: Bundle, tmp_path: Path) -> Bundle:
    """Copy the exported model, to be changed at will."""
    return Bundle.open(shutil.copytree(flash_quad_bundle.path, tmp_path / "bundle"))


def test_export_goes_to_the_last_position(exported: Path) -> None:
    text = " ".join((exported / "stdout.txt").read_text().split())
    assert "max_positions 128, num_token_types 2, norm_type scalenorm, norm_eps 1e-05" in text
    assert "inputs input_ids int64 (batch, seq), attention_mask int64 (batch, seq)" in text
    assert "ranges batch 1 to 64, seq 1 to 128 nodes 114, 40 in each of 2 blocks" in text
    assert "assumed" not in text


def test_assumed_defaults_are_told(files: Path, tmp_path: Path) -> None:
    made = check(
        "onnx", files / "pytorch_model.bin", "-o", tmp_path / "b", *FAMILY, "--assume-defaults", "--max-seq-len", "9"
    )
    assert "assumed hidden_act silu, layer_norm_eps 1e-05" in " ".join(made.stdout.split())
    assert Bundle.open(tmp_path / "b").get_graph().axes["seq"].max == 9


def test_validation_passes_at_every_length_padded_or_not(bundle: Bundle) -> None:
    result = check("validate", bundle.path, "--no-latency", *THREADS)
    assert re.search(r"PASSED +\d+ passed, 0 failed", result.stdout)
    assert re.search(r"ort-cpu +passed .*6 of 6", result.stdout)
    assert "1 to 128 tokens long" in " ".join(result.stdout.split())


def test_a_good_graph_bisects_clean(flash_quad_bundle: Bundle) -> None:
    assert "CLEAN  No fault found: 19 quantities" in check("bisect", flash_quad_bundle.path, *THREADS).stdout


@pytest.mark.parametrize(
    ("weight", "place"),
    [
        ("embedding.positions", "Embedding after its norm"),
        ("layers.1.query.gamma", "Block 1, queries"),
        ("layers.0.projection.value_weight", "Block 0, values"),
        ("layers.0.key.crossed_gamma", "Block 0, keys"),
        ("layers.1.bias_by_distance", "Block 1, attention weights"),
        ("layers.1.out_weight", "Block 1, output of the block"),
        ("head.transform_weight", "Projection before the decoder"),
        ("head.weight", "Logits"),
    ],
)
def test_a_fault_is_refused_and_found_where_it_is(bundle: Bundle, weight: str, place: str) -> None:
    plant_fault(bundle, weight, lambda values: values * np.float32(1.01))
    assert invoke("validate", bundle.path, "--no-latency", *LENGTHS, *THREADS).exit_code == 1
    found = invoke("bisect", bundle.path, *THREADS)
    assert found.exit_code == 1
    assert place in " ".join(found.stdout.split())


def test_ranges_of_the_last_norm_are_of_what_it_reads(bundle: Bundle) -> None:
    result = check("profile-ranges", bundle.path, "--json", "-")
    rows = {row["name"]: row for row in json.loads(result.stdout)["rows"]}
    squares = sorted(name for name in rows if name.endswith("norm_squares"))
    assert squares == ["layers.0.norm_squares", "layers.1.norm_squares", "norm_squares"]
    largest = rows["transform"]["points"][-1]["max_abs"]
    assert largest**2 < rows["norm_squares"]["points"][-1]["max_abs"] < CONFIG["hidden_size"] * largest**2


@pytest.mark.slow
def test_it_is_quantized_compared_and_validated_again(flash_quad_bundle: Bundle, tmp_path: Path) -> None:
    made = check("quantize", flash_quad_bundle.path, "-o", tmp_path / "int8", *THREADS)
    products = [f"layers.{index}.{name}" for index in (0, 1) for name in ("projection", "out")]
    for product in (*products, "head.transform", "head"):
        assert re.search(rf"{product} +int8", made.stdout)
    assert check("validate", tmp_path / "int8", "--no-latency", *LENGTHS, *THREADS)
    compared = check("compare", flash_quad_bundle.path, tmp_path / "int8", "--no-latency", *THREADS, "--json", "-")
    first, second = json.loads(compared.stdout)["entries"]
    assert first["quality"]["measures"]["top1_agreement"] == 1
    assert second["quality"]["measures"]["top1_agreement"] > 0.9


def test_fp16_is_validated_and_built(files: Path, tmp_path: Path) -> None:
    made = export(files, tmp_path / "half", "--precision", "fp16")
    assert "islands auto: none beyond what is fp32 in every model" in " ".join(made.stdout.split())
    assert check("validate", tmp_path / "half", "--no-latency", *LENGTHS, *THREADS)
    pytest.importorskip("tensorrt_rtx", reason="engines are built here with TensorRT-RTX alone")
    assert "float16" in check("trt", tmp_path / "half", "--compute-capability", "8.9").stdout


def test_an_engine_is_built(bundle: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx", reason="engines are built here with TensorRT-RTX alone")
    built = check("trt", bundle.path, "--compute-capability", "8.9")
    assert re.search(r"profiles +1x1:1x128:8x128", built.stdout)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ("onnx", "{bundle}", "-o", "{bundle}x", "--max-seq-len", "129"),
            "max_seq_len=129 is above the 128 tokens that the model takes at most; use 128 or less",
        ),
        (("validate", "{bundle}", "--seq-lens", "129"), "seq_len=129 exceeds the graph's maximum 128"),
        (("generate", "{bundle}", "--prompt", "a"), "is not causal"),
        (
            ("onnx", "{files}/pytorch_model.bin", "-o", "{bundle}x", *FAMILY),
            "weights do not tell hidden_act, layer_norm",
        ),
        (
            ("onnx", "{files}/pytorch_model.bin", "-o", "{bundle}x", "--family", "gau", "--assume-defaults"),
            "position_ids is torch.int64; weights must be floating point",
        ),
        (("onnx", "{bundle}", "-o", "{bundle}x", "--graphs", "forward,decode"), "attends in both directions"),
    ],
)
def test_what_does_not_fit_is_one_line(bundle: Bundle, files: Path, command: tuple[str, ...], message: str) -> None:
    result = invoke(*(part.replace("{bundle}", str(bundle.path)).replace("{files}", str(files)) for part in command))
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_flash_is_exported_as_family_flash_and_divides_by_the_padded_length(tmp_path: Path) -> None:
    torch.save(name_flash(make_flash(FLASH)), tmp_path / "flash.bin")
    given = ("--family", "flash", "--set", "group_size=4", "--set", "layer_norm_eps=1e-5", "--max-seq-len", "512")
    made = " ".join(check("onnx", tmp_path / "flash.bin", "-o", tmp_path / "b", *given).stdout.split())
    assert "chunk_size 4, qk_dim 6, causal False, norm_type scalenorm, shift_tokens False" in made
    assert "mask_divisor padded" in made
    shown = " ".join(check("inspect", tmp_path / "b").stdout.split())
    assert "from flash.bin (FLASHQuad_pytorch, sha256" in shown
    result = check("validate", tmp_path / "b", "--no-latency", "--seq-lens", "1,9,512", *THREADS)
    assert re.search(r"PASSED +\d+ passed, 0 failed", result.stdout)
