"""The example that trains a SimCC head: its figures are where it says, it learns, and it can be taken up again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from flash_export.models.checkpoint import load_pretrained

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_keypoints_are_where_the_sticks_end(load_module: Any) -> None:
    figures = load_module("keypoint_figures")
    drawn = figures.draw_figures(24, np.random.default_rng(0))
    assert drawn.images.shape == (24, 3, figures.HEIGHT, figures.WIDTH)
    assert drawn.keypoints.shape == (24, 17, 2)
    x, y = drawn.keypoints.unbind(-1)
    assert ((x >= figures.MARGIN) & (x <= figures.WIDTH - figures.MARGIN)).all()
    assert ((y >= figures.MARGIN) & (y <= figures.HEIGHT - figures.MARGIN)).all()
    # At a wrist or an ankle the image has the colour of its side: more red than blue, or more blue than red.
    for keypoint, side in ((9, 1), (15, 1), (10, -1), (16, -1)):
        column, row = x[:, keypoint].long(), y[:, keypoint].long()
        red, _, blue = drawn.images[torch.arange(24), :, row, column].unbind(-1)
        assert ((red - blue) * side > 0.1).float().mean() > 0.8


def test_figures_follow_the_seed(load_module: Any) -> None:
    draw = load_module("keypoint_figures").draw_figures
    first, again, other = (draw(2, np.random.default_rng(seed)).images for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.slow
def test_a_run_learns_writes_a_whole_checkpoint_and_is_taken_up_again(load_module: Any, tmp_path: Path) -> None:
    main = load_module("train_keypoints").main
    output = tmp_path / "head"
    options = ["--output", str(output), "--batch", "4", "--save-every", "1.5"]
    result = CliRunner().invoke(main, [*options, "--minutes", "0.1"], catch_exceptions=False)
    assert result.exit_code == 0
    entries = [json.loads(line) for line in result.output.splitlines()]
    assert entries[-1]["training_loss"] < entries[0]["training_loss"]
    assert {path.name for path in output.iterdir()} == {
        "config.json",
        "model.safetensors",
        "heldout.npz",
        "heldout.json",
        "training.json",
    }
    model = load_pretrained(output)
    with np.load(output / "heldout.npz") as arrays:
        scores = model(torch.from_numpy(arrays["features"]))
        assert arrays["target"].shape == (96, 17, 2)
    assert [tuple(one.shape) for one in scores] == [(96, 17, 192), (96, 17, 256)]
    facts = json.loads((output / "training.json").read_text())
    assert facts["parameters"] == model.count_parameters()

    result = CliRunner().invoke(main, [*options, "--minutes", "0.13"], catch_exceptions=False)
    assert json.loads(result.output.splitlines()[0])["step"] > entries[-1]["step"]
