"""What was assumed, chosen and repaired while weights were read is told by every command that comes after."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch

from flash_export.bundle.bundle import Bundle
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.import_record import ImportRecord
from tests.cli.commands import invoke

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

ASSUMED: dict[str, Any] = {
    "shift_tokens": True,
    "laplace_attn_fn": False,
    "library_version": "0.1.9",
}
ASSUMED_TEXT = "shift_tokens true, laplace_attn_fn false, library_version 0.1.9"
EXPORT = ("--graphs", "forward", "--max-seq-len", "64")


@pytest.fixture(scope="session")
def foreign_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save weights and averaged weights as a training script would, after ``.bfloat16()``."""
    torch.manual_seed(0)
    state = FlashModel(FlashConfig(17, 12, 1, 18, chunk_size=16, qk_dim=20, causal=True)).bfloat16().state_dict()
    state["layers.0.rotary_pos_emb.freqs"] = state.pop("rotary_pos_emb.freqs")
    path = tmp_path_factory.mktemp("foreign") / "run.pt"
    torch.save({"model": state, "model_ema": state, "optimizer": {"state": {0: torch.ones(1)}}}, path)
    return path


@pytest.fixture(scope="session")
def exported(foreign_file: Path) -> tuple[Result, Bundle]:
    """Export it with two arguments told; not to be changed."""
    told = ("--family", "flash", "--set", "group_size=16", "--set", "causal=true", "--assume-defaults")
    result = invoke("onnx", foreign_file, "-o", foreign_file.parent / "bundle", *told, *EXPORT)
    assert result.exit_code == 0, result.output
    return result, Bundle.open(foreign_file.parent / "bundle")


def test_record_is_in_the_manifest(exported: tuple[Result, Bundle]) -> None:
    _, bundle = exported
    assert bundle.manifest.imported == ImportRecord(
        library_version=None,
        assumed=ASSUMED,
        arguments={"group_size": 16, "causal": True},
        weights_key="model",
        weight_sets=("model", "model_ema"),
        notes=(
            "left out, beside the model in the file: optimizer (1 tensor)",
            "frequencies, stored rounded to half precision, were recomputed: "
            "abs_pos_emb.inv_freq, rotary_pos_emb.freqs",
        ),
    )
    assert json.loads((bundle.path / "manifest.json").read_text())["imported"]["assumed"] == ASSUMED


def test_export_and_inspect_tell_it(exported: tuple[Result, Bundle]) -> None:
    result, bundle = exported
    for output in (result.stdout, invoke("inspect", bundle.path).stdout):
        words = " ".join(output.split())
        assert "weights model, one of several in the file; --weights-key takes another: model_ema" in words
        assert f"assumed {ASSUMED_TEXT}: the library's defaults, which nobody gave and weights do not tell" in words
        assert "note left out, beside the model in the file: optimizer (1 tensor)" in words
        assert "note frequencies, stored rounded to half precision, were recomputed" in words
    report = json.loads(invoke("inspect", bundle.path, "--json", "-").stdout)
    assert report["manifest"]["imported"]["assumed"] == ASSUMED


def test_passed_validation_tells_it(exported: tuple[Result, Bundle], tmp_path: Path) -> None:
    _, bundle = exported
    backend = ("--backend", "ort-cpu", "--no-latency", "--report", tmp_path, "--json", tmp_path / "r.json")
    result = invoke("validate", bundle.path, "--seq-lens", "5,33", *backend)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "r.json").read_text())["environment"]["assumed"] == ASSUMED_TEXT
    assert f"Assumed: {ASSUMED_TEXT}." in " ".join(result.output.split())


def test_bundle_that_is_exported_again_keeps_it(exported: tuple[Result, Bundle], tmp_path: Path) -> None:
    _, bundle = exported
    result = invoke("onnx", bundle.path, "-o", tmp_path / "again", "--set", "shift_tokens=false", *EXPORT)
    assert result.exit_code == 0, result.output
    again = Bundle.open(tmp_path / "again").manifest
    assert again.checkpoint == bundle.manifest.checkpoint
    del (left := dict(ASSUMED))["shift_tokens"]
    assert again.imported.assumed == left
    assert again.imported.notes == bundle.manifest.imported.notes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--set", "causal=true"],
            "weights do not tell group_size, shift_tokens, laplace_attn_fn; give flash-pytorch's constructor arguments",
        ),
        (["--library-version", "0.0.9", "--assume-defaults"], "flash-pytorch 0.0.9 is not a release whose models are"),
        (
            ["--weights-key", "ema"],
            "run.pt holds no weights under 'ema'; choose with --weights-key one of model, model",
        ),
    ],
)
def test_what_is_missing_is_one_line(foreign_file: Path, tmp_path: Path, options: list[str], message: str) -> None:
    result = invoke("onnx", foreign_file, "-o", tmp_path / "bundle", "--family", "flash", *options)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_changed_config_of_a_bundle_is_not_exported(exported: tuple[Result, Bundle], tmp_path: Path) -> None:
    _, bundle = exported
    folder = shutil.copytree(bundle.path, tmp_path / "bundle")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "chunk_size": 8}))
    result = invoke("onnx", folder, "-o", tmp_path / "again")
    assert result.exit_code == 2
    assert "config.json was changed after the export" in result.stderr
