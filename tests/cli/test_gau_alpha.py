"""A GAU-alpha from the library's file to an engine, with the commands that a user types."""

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
from tests.models.gau_alpha_release import import_gau_alpha

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result
    from torch import Tensor

    from tests.conftest import FolderSharer

CONFIG: dict[str, Any] = {
    "model_type": "gau_alpha",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "attention_key_size": 16,
    "hidden_act": "swish",
    "normalization": "softmax_plus",
    "attention_scale": True,
}
FAMILY = ("--family", "gau_alpha")
THREADS = ("--threads", "1")
LENGTHS = ("--seq-lens", "1,5,32")


def to_bert4torch(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by the names of bert4torch."""
    renamed, prefix = {"mlmDecoder.weight": tensors["cls.predictions.decoder.weight"]}, "gau_alpha."
    for name, tensor in tensors.items():
        theirs = name.removeprefix(prefix).replace("encoder.layer", "encoderLayer").replace("token_type", "segment")
        if name.startswith(prefix) and "scaleoffset" not in name:
            renamed[theirs] = tensor
    for index in range(CONFIG["num_hidden_layers"]):
        pair = [tensors[f"{prefix}encoder.layer.{index}.gau.{head}_scaleoffset.weight"] for head in "qk"]
        renamed[f"encoderLayer.{index}.gau.offsetscale.gamma"] = torch.stack(pair)
    return renamed


@pytest.fixture(scope="session")
def files(share_folder: FolderSharer) -> Path:
    """Save a model of the library's own in both layouts, its config, and tokens; not to be changed."""

    def write(folder: Path) -> None:
        library = import_gau_alpha()
        torch.manual_seed(0)
        model = library.GAUAlphaForMaskedLM(library.GAUAlphaConfig(**CONFIG)).requires_grad_(requires_grad=False)
        for name, parameter in model.named_parameters():
            is_matrix = "dense" in name
            parameter.copy_(torch.randn_like(parameter) * (1.5 / parameter.shape[-1] ** 0.5 if is_matrix else 1))
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        torch.save(to_bert4torch(model.state_dict()), folder / "bert4torch.bin")
        (folder / "config.json").write_text(json.dumps(CONFIG))
        np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, 64, 2000))

    return share_folder("gau-alpha", write)


@pytest.fixture(scope="session")
def gau_alpha_bundle(files: Path, share_folder: FolderSharer) -> Bundle:
    """Export the model; not to be changed."""

    def write(folder: Path) -> None:
        export(files, folder / "bundle")

    return Bundle.open(share_folder("gau-alpha-bundle", write) / "bundle")


@pytest.fixture
def bundle(gau_alpha_bundle: Bundle, tmp_path: Path) -> Bundle:
    """Copy the exported model, to be changed at will."""
    return Bundle.open(shutil.copytree(gau_alpha_bundle.path, tmp_path / "bundle"))


def export(files: Path, target: Path, *options: str, source: str = "pytorch_model.bin") -> Result:
    data = ("--heldout", files / "tokens.npy", "--max-seq-len", 128)
    return check("onnx", files / source, "-o", target, *FAMILY, "--config", files / "config.json", *data, *options)


def test_both_layouts_give_the_same_graph(gau_alpha_bundle: Bundle, files: Path, tmp_path: Path) -> None:
    result = export(files, tmp_path / "bundle", source="bert4torch.bin")
    text = " ".join(result.stdout.split())
    assert "num_token_types 2, mask_dialect exact" in text
    assert "inputs input_ids int64 (batch, seq), attention_mask int64 (batch, seq)" in text
    assert "ranges batch 1 to 64, seq 1 to 128 nodes 83, 30 in each of 2 blocks" in text
    assert "assumed" not in text
    assert (
        Bundle.open(tmp_path / "bundle").manifest.files["model.onnx"] == gau_alpha_bundle.manifest.files["model.onnx"]
    )


def test_validation_passes_at_every_length_padded_or_not(bundle: Bundle) -> None:
    result = check("validate", bundle.path, "--no-latency", *THREADS)
    assert re.search(r"PASSED +\d+ passed, 0 failed", result.stdout)
    assert re.search(r"ort-cpu +passed .*6 of 6", result.stdout)


def test_a_good_graph_bisects_clean(gau_alpha_bundle: Bundle) -> None:
    assert "CLEAN  No fault found: 18 quantities" in check("bisect", gau_alpha_bundle.path, *THREADS).stdout


@pytest.mark.parametrize(
    ("weight", "place"),
    [
        ("layers.1.query.gamma", "Block 1, queries, scaled by the length"),
        ("embedding.table", "Embedding"),
        ("layers.0.projection.value_weight", "Block 0, values"),
        ("layers.0.key.crossed_gamma", "Block 0, keys"),
        ("layers.1.out_weight", "Block 1, output of the block before its norm"),
        ("head.weight", "Logits"),
    ],
)
def test_a_fault_is_refused_and_found_where_it_is(bundle: Bundle, weight: str, place: str) -> None:
    plant_fault(bundle, weight, lambda values: values * np.float32(1.01))
    assert invoke("validate", bundle.path, "--no-latency", *LENGTHS, *THREADS).exit_code == 1
    result = invoke("bisect", bundle.path, *THREADS)
    assert result.exit_code == 1
    assert f"FOUND  {place}" in " ".join(result.stdout.split("\n"))


def test_ranges_square_what_the_norms_read(gau_alpha_bundle: Bundle) -> None:
    result = check("profile-ranges", gau_alpha_bundle.path, *THREADS, "--json", "-")
    rows = {row["name"]: row for row in json.loads(result.stdout)["rows"]}
    squares = [name for name in rows if name.endswith("norm_squares")]
    assert sorted(squares) == ["layers.0.norm_squares", "layers.1.norm_squares"]
    for name in squares:
        total = rows[name.replace("norm_squares", "sum")]
        assert (total["held"], rows[name]["held"]) == ("always", "always")
        assert rows[name]["points"][-1]["max_abs"] > 1.5 * CONFIG["hidden_size"]  # after the norm it is that size


@pytest.mark.slow
def test_it_is_quantized_compared_and_validated_again(gau_alpha_bundle: Bundle, tmp_path: Path) -> None:
    made = check("quantize", gau_alpha_bundle.path, "-o", tmp_path / "int8", *THREADS)
    assert all(
        re.search(rf"layers.{index}.{name} +int8", made.stdout) for index in (0, 1) for name in ("projection", "out")
    )
    assert check("validate", tmp_path / "int8", "--no-latency", *LENGTHS, *THREADS)
    compared = check("compare", gau_alpha_bundle.path, tmp_path / "int8", "--no-latency", *THREADS, "--json", "-")
    first, second = json.loads(compared.stdout)["entries"]
    assert first["quality"]["measures"]["top1_agreement"] == 1
    assert 0.9 < second["quality"]["measures"]["top1_agreement"] < 1


@pytest.mark.slow
def test_fp16_is_validated_and_built(files: Path, tmp_path: Path) -> None:
    export(files, tmp_path / "half", "--precision", "fp16")
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
        (("generate", "{bundle}", "--prompt", "a"), "is not causal"),
        (("onnx", "{files}/pytorch_model.bin", "-o", "{bundle}x", *FAMILY), "weights do not tell hidden_act, normaliz"),
        (
            ("onnx", "{files}/pytorch_model.bin", "-o", "{bundle}x", "--family", "gau", "--assume-defaults"),
            "no matrix 'token_emb.weight' in the checkpoint",
        ),
        (("onnx", "{bundle}", "-o", "{bundle}x", "--graphs", "forward,decode"), "GAU-alpha attends in both directions"),
    ],
)
def test_what_does_not_fit_is_one_line(bundle: Bundle, files: Path, command: tuple[str, ...], message: str) -> None:
    result = invoke(*(part.replace("{bundle}", str(bundle.path)).replace("{files}", str(files)) for part in command))
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
