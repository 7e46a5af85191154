from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from flash_export.bundle.bundle import Bundle
from flash_export.config import BuildOptions, ExportOptions
from flash_export.exporters.engine import build_engine
from flash_export.exporters.export import export_onnx
from flash_export.models.flash import FlashConfig
from flash_export.models.mossformer2 import Mossformer2Config, WaveformFrames
from flash_export.models.registry import get_family
from flash_export.models.rtmpose_gau import RtmposeGauConfig, SimccHead
from flash_export.models.transformer import TransformerConfig
from flash_export.standalone.standalone import write_standalone

if TYPE_CHECKING:
    from flash_export.models.base import ModelConfig
    from tests.conftest import FolderSharer

BundleExporter = Callable[[str], Bundle]
FolderMaker = Callable[[str], Path]
EngineBuilder = Callable[..., Bundle]
# Chunks of 8 tokens, and the 256 bytes for tokens.
FLASH = FlashConfig(256, dim=32, depth=2, hidden_dim=48, chunk_size=8, qk_dim=32, causal=True)
TRANSFORMER = TransformerConfig(29, dim=24, depth=2, num_heads=2, ff_dim=32, causal=True)
SIZES: dict[str, Any] = {"dim": 16, "depth": 1, "hidden_dim": 24, "qk_dim": 8}
SPEAKERS = Mossformer2Config(
    in_channels=8, out_channels=8, chunk_size=8, fsmn="dilated", fsmn_dim=12, frames=WaveformFrames(8, 8000), **SIZES
)
KEYPOINTS = RtmposeGauConfig(17, dim=16, hidden_dim=32, out_dim=16, qk_dim=8, head=SimccHead(6, 3, 4, 3, 24, 32))
MODELS: dict[str, tuple[ModelConfig, ExportOptions]] = {
    "flash": (FLASH, ExportOptions(max_seq_len=200, max_batch=4)),
    "batch-of-3": (FLASH, ExportOptions(max_seq_len=200, batch=3)),
    "forward": (FLASH, ExportOptions(max_seq_len=200, graphs=("forward",))),
    "fp16": (FLASH, ExportOptions(max_seq_len=200, precision="fp16")),
    "bf16": (FLASH, ExportOptions(max_seq_len=200, precision="bf16", graphs=("forward",))),
    "transformer": (TRANSFORMER, ExportOptions(max_seq_len=200, max_batch=4)),
    "speakers": (SPEAKERS, ExportOptions(max_seq_len=1000)),
    "keypoints": (KEYPOINTS, ExportOptions()),
}


@pytest.fixture(scope="session")
def export_model(share_folder: FolderSharer) -> BundleExporter:
    """Export a small model by its name above, each once; not to be changed."""

    @functools.cache
    def export(name: str) -> Bundle:
        config, options = MODELS[name]

        def write(folder: Path) -> None:
            torch.manual_seed(0)
            model = get_family(config.model_type).model_class(config)
            for key, parameter in model.named_parameters():  # attention is to matter, and no bias to drown it
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, std=1 if "qk_offset_scale" in key else 0.6)
            model.save_pretrained(folder / "checkpoint")
            export_onnx(folder / "checkpoint", folder / "bundle", options=options)

        return Bundle.open(share_folder(f"standalone-{name}", write) / "bundle")

    return export


@pytest.fixture
def make_folder(export_model: BundleExporter, tmp_path: Path) -> FolderMaker:
    """Write the standalone folder of such a model."""

    def make(name: str) -> Path:
        write_standalone(export_model(name), tmp_path / "service")
        return tmp_path / "service"

    return make


@pytest.fixture
def build_engines(tmp_path: Path) -> EngineBuilder:
    """Build engines of a bundle, in a copy of it; they are for a GPU that need not be here."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")

    def make(bundle: Bundle, *graphs: str, profiles: tuple[str, ...] = (), name: str | None = None) -> Bundle:
        copy = tmp_path / "bundle"
        if bundle.path != copy:
            shutil.copytree(bundle.path, copy)
        built = Bundle.open(copy)
        for graph in graphs:
            options = BuildOptions(
                graph, name, flavour="tensorrt-rtx", profiles=profiles, compute_capabilities=("8.9",), overwrite=True
            )
            build_engine(built, options=options)
        return built

    return make
