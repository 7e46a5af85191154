from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from click.testing import CliRunner

from flash_export.bundle.bundle import Bundle
from flash_export.cli import progress_display
from flash_export.cli.main import main
from flash_export.models.flash import FlashConfig, FlashModel

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FolderSharer

SMALL_CONFIG = FlashConfig(17, 12, 2, 24, chunk_size=16, qk_dim=20)


@pytest.fixture(autouse=True)
def _no_progress_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep stderr the same on a slow machine: how soon progress shows is tested by itself."""
    monkeypatch.setattr(progress_display, "FIRST_LINE_S", 3600.0)


@pytest.fixture(scope="session")
def small_checkpoint(share_folder: FolderSharer) -> Path:
    """Save a checkpoint folder of a tiny model with padding to be masked; not to be changed."""

    def write(folder: Path) -> None:
        torch.manual_seed(0)
        FlashModel(SMALL_CONFIG).save_pretrained(folder / "model")

    return share_folder("checkpoint", write) / "model"


@pytest.fixture(scope="session")
def small_bundle(small_checkpoint: Path, share_folder: FolderSharer) -> Bundle:
    """Export it with the real command, once; not to be changed."""

    def write(folder: Path) -> None:
        arguments = ["onnx", str(small_checkpoint), "-o", str(folder / "bundle"), "--max-seq-len", "512"]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output

    return Bundle.open(share_folder("small", write) / "bundle")


@pytest.fixture
def bundle(small_bundle: Bundle, tmp_path: Path) -> Bundle:
    """Copy the exported bundle, to be changed at will."""
    return Bundle.open(shutil.copytree(small_bundle.path, tmp_path / "bundle"))
