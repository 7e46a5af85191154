"""``flash-export families`` lists every family, in words that hold for its models."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner

from flash_export.cli.main import main
from flash_export.exporters.lowering.registry import LOWERINGS
from flash_export.models.registry import FAMILIES, recognise_family
from flash_export.originals.serve import LIBRARIES

if TYPE_CHECKING:
    from pathlib import Path

SIZES: dict[str, Any] = {"vocab_size": 8, "dim": 8, "depth": 1, "hidden_dim": 16, "qk_dim": 4}
HEADS: dict[str, Any] = {"vocab_size": 8, "dim": 8, "depth": 1, "num_heads": 2, "ff_dim": 16}
OWN = ("transformer", "mc_tfm", "performer", "linformer", "longformer", "bigbird")
# Libraries that have no module here to compare with: one is not on PyPI, the other is this tool.
NOT_COMPARED = ("FLASHQuad_pytorch", "flash-export")
EXAMPLES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(OWN, HEADS),
    "flash": SIZES,
    "gau": SIZES,
    "gau_alpha": SIZES,
    "flash_quad": SIZES,
    "mossformer2": {"in_channels": 6, "dim": 8, "depth": 1, "hidden_dim": 16, "out_channels": 5},
    "rtmpose_gau": {
        "num_keypoints": 3,
        "dim": 8,
        "hidden_dim": 16,
        "out_dim": 8,
        "head": {
            "in_channels": 2,
            "map_width": 2,
            "map_height": 2,
            "kernel_size": 1,
            "image_width": 8,
            "image_height": 8,
        },
    },
}


def run(*options: str) -> str:
    result = CliRunner().invoke(main, ["families", *options])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_json_has_every_family() -> None:
    families = json.loads(run("--json", "-"))["families"]
    assert [one["name"] for one in families] == list(FAMILIES) == list(LOWERINGS)
    flash = families[0]
    assert flash["source"] == "flash-pytorch"
    assert flash["asked"][:2] == ["group_size", "causal"]


def test_the_table_says_what_weights_do_not_tell() -> None:
    text = run()
    assert "gau: weights do not tell causal, laplace_attn_fn" in text
    for name, family in FAMILIES.items():
        assert name in text
        assert (f"{name}: weights do not tell" in text) == bool(family.asked)


def test_families_of_our_own_are_of_no_library_and_told_by_no_name() -> None:
    families = {one["name"]: one for one in json.loads(run("--json", "-"))["families"]}
    own = {name for name, one in families.items() if one["source"] == "flash-export"}
    assert own == set(OWN)
    assert all(families[name]["asked"] == [] for name in own)
    told = "layers.0.qk_offset_scale.gamma"
    assert recognise_family(["", "odd.", told]) == ("flash", told)


def test_a_foreign_file_of_a_family_of_our_own_is_one_line(tmp_path: Path) -> None:
    torch.save({"token_emb.weight": torch.zeros(8, 8)}, tmp_path / "model.pt")
    for name in OWN:
        result = CliRunner().invoke(
            main, ["onnx", str(tmp_path / "model.pt"), "-o", str(tmp_path / "b"), "--family", name]
        )
        assert result.exit_code == 2
        assert result.stderr == (
            "Error: weights of this family are read from a folder with config.json and model.safetensors, as "
            "save_pretrained of its model writes it; give that folder\n"
        )
    told = CliRunner().invoke(main, ["onnx", str(tmp_path / "model.pt"), "-o", str(tmp_path / "b")])
    assert told.exit_code == 2
    assert "one of flash, gau, rtmpose_gau, gau_alpha, flash_quad, mossformer2\n" in told.stderr


@pytest.mark.parametrize("name", FAMILIES)
def test_the_task_is_that_of_the_models(name: str) -> None:
    family = FAMILIES[name]
    assert family.config_class.from_dict(EXAMPLES[name]).interface.task == family.task
    assert set(family.hidden_arguments) <= set(family.asked)


@pytest.mark.parametrize("name", [name for name, one in FAMILIES.items() if one.source not in NOT_COMPARED])
def test_the_library_of_a_family_can_be_compared_with(name: str) -> None:
    assert FAMILIES[name].source in LIBRARIES
