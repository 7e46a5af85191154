from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from flash_export.bundle.bundle import Bundle
from flash_export.config import ExportOptions
from flash_export.exporters.export import export_onnx
from flash_export.models.flash import FlashConfig, FlashModel

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FolderSharer

MAX_SEQ_LEN = 60  # not a multiple of the chunk
CAUSAL_CONFIG = FlashConfig(29, 22, 2, 33, chunk_size=8, qk_dim=37, causal=True)


@pytest.fixture(scope="session")
def causal_bundle(share_folder: FolderSharer) -> Bundle:
    """Export a tiny causal model with all its graphs, once; not to be changed."""
    return Bundle.open(share_folder("causal", _export_causal) / "bundle")


def _export_causal(folder: Path) -> None:
    torch.manual_seed(0)
    model = FlashModel(CAUSAL_CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder / "checkpoint")
    export_onnx(folder / "checkpoint", folder / "bundle", options=ExportOptions(max_seq_len=MAX_SEQ_LEN))
