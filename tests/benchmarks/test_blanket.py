"""bf16 everywhere, without islands, is another model, and validation says so."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest

from flash_export import ExportOptions, export_onnx
from flash_export.config import FORWARD
from flash_export.validators.validate import validate_bundle
from flash_export.validators.validation_options import ValidationOptions

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle

ASSETS = Path(__file__).parents[2] / "flash_export" / "assets"


def export(name: str, precision: str, folder: Path) -> Bundle:
    options = ExportOptions(precision=precision, max_seq_len=1024, graphs=(FORWARD,))
    return export_onnx(ASSETS / name, folder / precision, options=options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["byte-causal", "byte-masked"])
def test_a_graph_without_islands_is_refused_on_the_quick_plan(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    round_everything = importlib.import_module("harness.blanket").round_everything
    path = tmp_path / "blanket.onnx"
    onnx.save(round_everything(export(name, "fp32", tmp_path).get_graph_path()), path)
    bundle = export(name, "bf16", tmp_path)
    options = ValidationOptions(backends=("ort-cpu",), onnx_files=(path,), latency_budget_s=0)
    report = validate_bundle(bundle, options)
    assert {row.backend for row in report.rows if row.status == "failed"} == {"onnx:blanket"}
    ours = [row.max_rel_error for row in report.rows if row.backend == "ort-cpu" and row.max_rel_error is not None]
    assert max(ours) < 0.02
