"""``flash-export families`` lists every family, in words that hold for its models."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from flash_export.cli.main import main
from flash_export.exporters.lowering.registry import LOWERINGS
from flash_export.models.registry import FAMILIES
from flash_export.originals.serve import LIBRARIES

SIZES: dict[str, Any] = {"vocab_size": 8, "dim": 8, "depth": 1, "hidden_dim": 16, "qk_dim": 4}
EXAMPLES: dict[str, dict[str, Any]] = {
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
    for name in FAMILIES:
        assert name in text


@pytest.mark.parametrize("name", FAMILIES)
def test_the_task_is_that_of_the_models(name: str) -> None:
    family = FAMILIES[name]
    assert family.config_class.from_dict(EXAMPLES[name]).interface.task == family.task
    assert set(family.hidden_arguments) <= set(family.asked)


@pytest.mark.parametrize("name", [name for name, one in FAMILIES.items() if one.source != "FLASHQuad_pytorch"])
def test_the_library_of_a_family_can_be_compared_with(name: str) -> None:
    assert FAMILIES[name].source in LIBRARIES
