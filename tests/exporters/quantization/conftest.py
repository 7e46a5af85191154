"""Exported forward graphs of tiny models, and one product alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from flash_export.config import FORWARD, ExportOptions
from flash_export.exporters.export import export_onnx
from flash_export.exporters.quantization.source import SourceGraph
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.gau import GauConfig, GauModel
from tests.exporters.quantization import builders

SIZES: dict[str, Any] = {"vocab_size": 61, "dim": 32, "depth": 1, "hidden_dim": 48, "qk_dim": 32}
CONFIGS: dict[str, FlashConfig | GauConfig] = {
    "flash-causal": FlashConfig(**SIZES, chunk_size=8, causal=True),
    "flash-masked": FlashConfig(**SIZES, chunk_size=8, norm_type="layernorm", shift_tokens=False),
    "gau-causal": GauConfig(**SIZES, causal=True),
}
ProductWriter = Callable[..., ir.Model]


@dataclass(frozen=True)
class Exported:
    """A model's forward graph as quantization takes it."""

    name: str
    source: SourceGraph

    def make_inputs(self, seq_len: int) -> dict[str, np.ndarray]:
        """Make two rows of tokens, the second a little shorter where that can be said."""
        ids = np.random.default_rng(seq_len).integers(0, SIZES["vocab_size"], (2, seq_len))
        mask = np.ones_like(ids)
        mask[1, -3:] = 0
        return {"input_ids": ids, "attention_mask": mask} if self.source.graph.has_mask else {"input_ids": ids}


@pytest.fixture(scope="session", params=CONFIGS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Export a tiny model of each kind once."""
    config = CONFIGS[request.param]
    torch.manual_seed(0)
    model = FlashModel(config).eval() if isinstance(config, FlashConfig) else GauModel(config).eval()
    for name, parameter in model.named_parameters():  # attention is to matter
        torch.nn.init.normal_(parameter, std=1 if "offset" in name else 0.2)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder / "checkpoint")
    options = ExportOptions(opset=21, graphs=(FORWARD,))
    bundle = export_onnx(folder / "checkpoint", folder / "bundle", options=options)
    return Exported(request.param, SourceGraph.read(bundle.get_graph_path(), bundle.get_graph()))


@pytest.fixture
def write_product() -> ProductWriter:
    """Make a graph of one product."""
    return builders.write_product
