"""The bundled trained models pass the whole full plan, up to the default maximum length."""

from __future__ import annotations

from pathlib import Path

import pytest

import flash_export
from flash_export.config import DEFAULT_MAX_SEQ_LEN
from flash_export.exporters.export import export_onnx
from flash_export.validators.validate import validate_bundle
from flash_export.validators.validation_options import ValidationOptions

pytest.importorskip("onnxruntime")

ASSETS = Path(flash_export.__file__).parent / "assets"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["byte-causal", "byte-masked"])
def test_bundled_model_passes_the_whole_plan(tmp_path: Path, name: str) -> None:
    bundle = export_onnx(ASSETS / name, tmp_path / name)
    report = validate_bundle(bundle, ValidationOptions(backends=("ort-cpu",), plan="full"))
    assert report, [row for row in report.rows if row.status == "failed"]
    passed = [row for row in report.rows if row.status == "passed"]
    assert max(row.seq_len or 0 for row in passed) == DEFAULT_MAX_SEQ_LEN
    assert any(row.masked for row in passed) == bundle.get_graph().has_mask
    assert report.scores is not None
    assert report.scores.values["ort-cpu"] == pytest.approx(report.scores.values["eager"], abs=1e-4)
