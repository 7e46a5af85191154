"""A causal ``transformer`` as a user types it: its three graphs told, compared in pieces, and made to write."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from flash_export.models.transformer import TransformerConfig, TransformerModel
from tests.cli.commands import check, invoke

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = TransformerConfig(
    vocab_size=256, dim=32, depth=2, num_heads=2, ff_dim=48, positions="learnt", max_positions=160, causal=True
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = TransformerModel(CONFIG)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("transformer") / "model"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    folder = checkpoint.parent / "bundle"
    output = " ".join(check("onnx", checkpoint, "-o", folder).output.split())
    assert "forward, prefill, decode, with a state of 512 B per row and token: 80 KiB at 160 tokens" in output
    return folder


def test_inspect_tells_bytes_by_length_and_the_axis(bundle: Path) -> None:
    result = json.loads(check("inspect", bundle, "--json", "-").stdout)
    facts = result["manifest"]["model"]
    assert (facts["state_bytes"], facts["state_bytes_per_token"]) == (8, 2 * CONFIG.depth * CONFIG.dim * 4)
    assert result["manifest"]["graphs"]["decode"]["axes"]["past"] == {"min": 1, "max": 160}
    shown = " ".join(check("inspect", bundle).stdout.split())
    assert "state 512 B per row and token" in shown
    assert "past 1 to 160" in shown
    assert "attention as one operator" not in shown


def test_validate_reads_the_text_in_pieces_by_default(bundle: Path) -> None:
    result = check("validate", bundle, "--seq-lens", "1,2,33,150", "--no-latency", "--json", "-")
    rows = [row for row in json.loads(result.stdout)["rows"] if row["backend"] == "stream:ort-cpu"]
    assert {row["status"] for row in rows} == {"passed"}
    assert {row["seq_len"] for row in rows if row["check"] == "accuracy"} == {1, 2, 33, 150}


def test_a_text_goes_on_from_a_saved_state(bundle: Path, tmp_path: Path) -> None:
    state = tmp_path / "text.state"
    whole = check("generate", bundle, "--prompt", "def main(", "--max-tokens", "30").stdout
    check("generate", bundle, "--prompt", "def ", "--max-tokens", "0", "--save-state", state)
    resumed = check("generate", bundle, "--load-state", state, "--prompt", "main(", "--max-tokens", "30").stdout
    assert resumed == whole
    again = check("generate", bundle, "--prompt", "def main(", "--max-tokens", "30", "--backend", "eager").stdout
    assert again == whole


def test_a_text_of_more_tokens_than_positions_is_one_line(bundle: Path) -> None:
    result = invoke("generate", bundle, "--prompt", "a" * 150, "--max-tokens", "20")
    assert result.exit_code == 2
    assert "the text has 161 tokens, decode.onnx takes 160 at most" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("opset", [20, 23])
def test_quantities_of_the_graph_are_those_of_a_model_that_turns(opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    TransformerModel(replace(CONFIG, positions="rotary")).save_pretrained(tmp_path / "model")
    check("onnx", tmp_path / "model", "-o", tmp_path / "bundle", "--opset", opset, "--graphs", "forward")
    assert json.loads(check("bisect", tmp_path / "bundle", "--json", "-").stdout)["clean"]


def test_compare_times_more_steps_than_a_text_has_tokens(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    result = check("compare", bundle, copy, "--seq-len", "16", "--windows", "1", "--json", "-")
    for entry in json.loads(result.stdout)["entries"]:
        assert entry["decode"]["reason"] is None
        assert entry["decode"]["latency_ms"]["runs"] > 0


def test_the_opset_is_told(checkpoint: Path, tmp_path: Path) -> None:
    output = check("onnx", checkpoint, "-o", tmp_path / "bundle", "--opset", "23").output
    assert "attention as one operator" in " ".join(output.split())
    graphs = json.loads(check("inspect", tmp_path / "bundle", "--json", "-").stdout)["manifest"]["graphs"]
    assert {name: graph["fused_attention"] for name, graph in graphs.items()} == {
        "forward": True,
        "prefill": True,
        "decode": False,
    }


def test_a_family_without_a_state_is_refused_in_one_line(tmp_path: Path) -> None:
    from flash_export.models.registry import get_family

    family = get_family("performer")
    config = family.config_class.from_dict(
        {"vocab_size": 17, "dim": 16, "depth": 1, "num_heads": 2, "ff_dim": 16, "causal": True}
    )
    family.model_class(config).save_pretrained(tmp_path / "model")
    result = invoke("onnx", tmp_path / "model", "-o", tmp_path / "bundle", "--graphs", "forward,decode")
    assert result.exit_code == 2
    assert "family performer is exported for whole sequences alone" in result.stderr
    assert result.stderr.count("\n") == 1
