"""The bundled trained models in few bits: what they lose, and how small they become."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import flash_export
from flash_export.config import SCHEMES, QuantizeOptions
from flash_export.exporters.export import export_onnx
from flash_export.quantization.quantize import quantize_bundle
from flash_export.validators.validate import validate_bundle
from flash_export.validators.validation_options import ValidationOptions

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow

ASSETS = Path(flash_export.__file__).parent / "assets"
MAX_CHANGE = {"int8-token": 0.001, "int8": 0.005, "int4": 0.02, "fp8": 0.005}
MAX_RATIO = {"int8-token": 0.30, "int8": 0.30, "int4": 0.20, "fp8": 0.30}


@pytest.fixture(scope="module", params=["byte-causal", "byte-masked"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_onnx(ASSETS / request.param, tmp_path_factory.mktemp(request.param) / "bundle")


def measure_forward(bundle: Bundle) -> int:
    """Return the bytes of the forward graph and of the weights beside it."""
    path = bundle.get_graph_path()
    data = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (data.stat().st_size if data.is_file() else 0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_trained_model_keeps_its_bits_and_loses_its_weight(trained: Bundle, tmp_path: Path, scheme: str) -> None:
    bundle = quantize_bundle(trained, tmp_path / "out", options=QuantizeOptions(scheme))
    record = bundle.read_quantization()
    assert record is not None
    assert record.loss <= record.budget
    assert record.score is not None
    assert record.reference_score is not None
    assert record.score / record.reference_score - 1 <= MAX_CHANGE[scheme]
    ratio = measure_forward(bundle) / measure_forward(trained)
    assert ratio <= MAX_RATIO[scheme], ratio

    report = validate_bundle(bundle, ValidationOptions(backends=("ort-cpu",), latency_budget_s=0, max_seq_len=2048))
    assert report, [row for row in report.rows if row.status == "failed"]
    assert report.scores is not None
    assert report.scores.compute_loss("ort-cpu") <= MAX_CHANGE[scheme]
