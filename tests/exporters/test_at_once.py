"""Two exports into one new name: the first one there wins, unless the second was told to replace it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from click.testing import CliRunner

from flash_export.bundle.bundle import Bundle
from flash_export.cli.main import main
from flash_export.exporters.serialization import SplitModels, write_models
from flash_export.models.flash import FlashConfig, FlashModel

if TYPE_CHECKING:
    from pathlib import Path

GRAPHS = "--graphs", "forward"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = FlashModel(FlashConfig(11, dim=8, depth=1, hidden_dim=8, chunk_size=4, qk_dim=8))
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("force", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_export_that_another_one_overtakes(
    checkpoint: Path, masked_byte_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, force: bool
) -> None:
    target = tmp_path / "bundle"
    overtaken: list[bool] = []

    def overtake(models: SplitModels, folder: Path) -> None:
        if not overtaken:
            overtaken.append(True)
            shutil.copytree(masked_byte_bundle.path, target)  # lengths to 96
        write_models(models, folder)

    monkeypatch.setattr("flash_export.exporters.export.write_models", overtake)
    arguments = [
        "onnx",
        str(checkpoint),
        "-o",
        str(target),
        "--max-seq-len",
        "32",
        *GRAPHS,
        *(["--force"] if force else []),
    ]
    result = CliRunner().invoke(main, arguments)
    longest = Bundle.open(target).get_graph().axes["seq"].max
    if force:
        assert (result.exit_code, longest) == (0, 32)
    else:
        assert (result.exit_code, longest) == (2, 96)
        assert "bundle was made by another process in the meantime; choose another folder, or" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "model"]
