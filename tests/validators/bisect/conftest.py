"""Models of three blocks whose graphs can be damaged in the middle one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from flash_export.bundle.bundle import Bundle
from flash_export.config import ExportOptions
from flash_export.exporters.export import export_onnx
from flash_export.models.flash import FlashConfig, FlashModel

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FolderSharer

SIZES: dict[str, Any] = {"vocab_size": 23, "dim": 16, "depth": 3, "hidden_dim": 24, "chunk_size": 8, "qk_dim": 12}
CONFIGS = {"causal": FlashConfig(**SIZES, causal=True), "masked": FlashConfig(**SIZES)}


@pytest.fixture(scope="session")
def pristine_bundles(share_folder: FolderSharer) -> dict[str, Bundle]:
    """Good bundles, lengths to 96, that no test may change."""
    folder = share_folder("three-blocks", _export_all)
    return {name: Bundle.open(folder / name / "bundle") for name in CONFIGS}


@pytest.fixture
def pristine_bundle(pristine_bundles: dict[str, Bundle], request: pytest.FixtureRequest) -> Bundle:
    """The causal one, or the one that a test names; ``bundle`` and ``edit_graph`` copy it."""
    return pristine_bundles[getattr(request, "param", "causal")]


def _export_all(folder: Path) -> None:
    for name, config in CONFIGS.items():
        torch.manual_seed(1)
        model = FlashModel(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder / name / "checkpoint")
        options = ExportOptions(max_seq_len=96, max_batch=4)
        export_onnx(folder / name / "checkpoint", folder / name / "bundle", options=options)
