"""Exported graphs of every dialect agree with the model at every quantity: the whole way, through onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
import torch

from flash_export.config import ExportOptions
from flash_export.exporters.export import export_onnx
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.gau import GauConfig, GauModel
from flash_export.validators.bisect.bisect import BisectOptions, bisect_bundle

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.models.base import ModelConfig

SIZES: dict[str, Any] = {"vocab_size": 29, "dim": 22, "depth": 2, "hidden_dim": 33, "qk_dim": 37}
CONFIGS: dict[str, ModelConfig] = {
    "chunk-sums": FlashConfig(
        **SIZES, chunk_size=8, sum_over_chunks=False, mask_divisor="padded", norm_type="layernorm", shift_tokens=False
    ),
    "causal-laplace": FlashConfig(**SIZES, chunk_size=8, causal=True, attention_fn="laplace"),
    "gau": GauConfig(**SIZES, norm_type="scalenorm"),
    "gau-causal-laplace": GauConfig(**SIZES, causal=True, attention_fn="laplace", mask_divisor="padded"),
}


SLOW = {"causal-laplace", "chunk-sums", "gau-causal-laplace"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CONFIGS]
)
def test_good_export_is_clean(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    torch.manual_seed(0)
    model = FlashModel(config) if isinstance(config, FlashConfig) else GauModel(cast("GauConfig", config))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "checkpoint")
    options = ExportOptions(mask=True, graphs=("forward",))
    bundle = export_onnx(tmp_path / "checkpoint", tmp_path / "bundle", options=options)

    names = {probe.name for probe in bundle.read_probes().probes}
    for seq_len in (None, 41):
        report = bisect_bundle(bundle, BisectOptions(seq_len=seq_len, threads=1))
        assert report, report.shown_run.fault
        assert {row.name for run in report.runs for row in run.rows if row.status == "clean"} == names
