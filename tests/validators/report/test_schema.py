"""The shipped JSON Schema against reports of every kind, made by hand, at random, and by real validations."""

from __future__ import annotations

import io
import json
import shutil
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from flash_export.report.html import render_html
from flash_export.report.junit import render_junit
from flash_export.report.markdown import render_markdown
from flash_export.report.terminal import print_document
from flash_export.typed_json import build
from flash_export.validators.footprint import Footprint, ShapeCost
from flash_export.validators.invariances import INVARIANCES
from flash_export.validators.latency import Percentiles
from flash_export.validators.report.comparison import compare_reports
from flash_export.validators.report.comparison_page import describe_comparison
from flash_export.validators.report.validation import describe_validation
from flash_export.validators.results import HeldoutScores, Row, ValidationReport
from flash_export.validators.validate import validate_bundle
from flash_export.validators.validation_options import ValidationOptions
from tests.validators.report.builders import (
    BITS,
    ENVIRONMENT,
    FAILED,
    FULL,
    MIXED,
    SKIPPED,
    make_invariance,
    make_passed,
    make_report,
)

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle

POSITIVE = st.floats(1e-9, 1e9)
MEASURES = st.floats(0, 1e9)
BACKENDS = st.sampled_from(["ort-cpu", "ort-cuda", "trt", "trt:my engine", "onnx:torch", "stream:ort-cpu"])
CHECKS = st.sampled_from(["accuracy", *(invariance.name for invariance in INVARIANCES)])
LATENCIES = st.none() | st.builds(Percentiles, POSITIVE, POSITIVE, POSITIVE, POSITIVE, POSITIVE, st.integers(1, 1000))
SIZES = st.integers(1, 1 << 20)
SHAPES = {"backend": BACKENDS, "graph": st.just("forward"), "masked": st.booleans(), "check": CHECKS,
          "inputs": st.sampled_from(["random", "recorded"])}  # fmt: skip
TASK_MEASURES = st.fixed_dictionaries({}, optional={"top1_agreement": st.floats(0, 1), "kl_bits": MEASURES})
OPTIONAL = st.none() | MEASURES
PASSED = st.builds(
    partial(Row, status="passed"),
    **SHAPES,
    batch=SIZES,
    seq_len=SIZES,
    reason=st.none() | st.text(),
    max_abs_error=MEASURES,
    max_rel_error=OPTIONAL,
    noise=OPTIONAL,
    tolerance=MEASURES,
    measures=TASK_MEASURES,
    latency_ms=LATENCIES,
    eager_latency_ms=LATENCIES,
    compiled_latency_ms=LATENCIES,
    first_latency_ms=OPTIONAL,
    speedup=OPTIONAL,
    units_per_s=OPTIONAL,
)
FAILURES = st.builds(
    partial(Row, status="failed"),
    **SHAPES,
    batch=SIZES,
    seq_len=SIZES,
    reason=st.text(),
    max_abs_error=OPTIONAL,
    max_rel_error=OPTIONAL,
    noise=OPTIONAL,
    tolerance=OPTIONAL,
    measures=TASK_MEASURES,
)
SKIPS = st.builds(
    partial(Row, status="skipped"),
    **SHAPES,
    batch=st.none() | SIZES,
    seq_len=st.none() | SIZES,
    reason=st.text(),
)
COSTS = st.builds(ShapeCost, SIZES, POSITIVE, POSITIVE)
FOOTPRINTS = st.builds(
    Footprint,
    BACKENDS,
    st.none() | st.text(),
    OPTIONAL,
    st.none() | st.integers(0, 1 << 40),
    st.lists(COSTS, max_size=3).map(tuple),
    OPTIONAL,
    OPTIONAL,
    st.none() | st.integers(0, 1 << 40),
    st.none() | SIZES,
)
REPORTS = st.builds(
    ValidationReport,
    st.text(),
    st.just(ENVIRONMENT),
    st.lists(PASSED | FAILURES | SKIPS, max_size=6).map(tuple),
    st.just(MIXED.measures),
    st.sampled_from(["tokens", "samples"]),
    st.none() | st.dictionaries(BACKENDS, MEASURES).map(lambda bits: HeldoutScores(BITS, {"eager": 1.0, **bits})),
    st.lists(st.text(), max_size=2).map(tuple),
    st.lists(FOOTPRINTS, max_size=2).map(tuple),
)


def load_schema() -> dict[str, Any]:
    path = resources.files("flash_export").joinpath("schemas/validate.schema.json")
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def check(report: ValidationReport) -> None:
    jsonschema.validate(json.loads(report.to_json()), load_schema())


def test_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(load_schema())


@pytest.mark.parametrize("report", [FULL, MIXED, make_report(make_passed(), bits={"eager": 2.5}), make_report()])
def test_reports_follow_it(report: ValidationReport) -> None:
    check(report)


@settings(deadline=None, max_examples=60)
@given(REPORTS)
def test_any_report_follows_it_comes_back_and_can_be_shown(report: ValidationReport) -> None:
    check(report)
    values = json.loads(report.to_json())
    del values["passed"]
    assert build(values, ValidationReport) == report
    for document in (describe_validation(report), describe_comparison(compare_reports(FULL, report))):
        assert render_html(document)
        assert render_markdown(document)
        assert render_junit(document)
        print_document(document, Console(file=io.StringIO(), width=80))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("status", "ok"),
        ("max_abs_error", None),
        ("seq_len", 0),
        ("speedup", "3"),
        ("backend", "eager"),
        ("check", "luck"),
        ("measures", {"kl_bits": "none"}),
        ("units_per_s", -1),
        ("latency_ms", {"p50": 1.0}),
    ],
)
def test_other_rows_are_refused(field: str, value: object) -> None:
    document = make_report(make_passed()).to_dict()
    document["rows"][0][field] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, load_schema())


@pytest.mark.parametrize(
    ("field", "value"),
    [("backend", "eager"), ("open_ms", -1.0), ("peak_bytes", 1.5), ("shapes", [{"seq_len": 1}]), ("more", 1)],
)
def test_other_footprints_are_refused(field: str, value: object) -> None:
    document = json.loads(FULL.to_json())
    document["footprints"][0][field] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, load_schema())


@pytest.mark.parametrize(
    ("row", "field", "value"),
    [(FAILED, "reason", None), (SKIPPED, "reason", None), (make_invariance("repeat"), "tolerance", None)],
)
def test_rows_without_what_their_status_asks_for_are_refused(row: Row, field: str, value: object) -> None:
    document = make_report(row).to_dict()
    document["rows"][0][field] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, load_schema())


def test_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        make_report(make_passed(), bits={"eager": float("nan")}).to_json()


def test_real_validation_with_a_foreign_graph_follows_it(pristine_bundle: Bundle, tmp_path: Path) -> None:
    foreign = shutil.copy(pristine_bundle.get_graph_path(), tmp_path / "other.onnx")
    options = ValidationOptions(
        backends=("ort-cpu", "ort-cuda"),
        onnx_files=(tmp_path / "other.onnx",),
        max_seq_len=9,
        threads=1,
        latency_budget_s=0.01,
    )
    report = validate_bundle(pristine_bundle, options)

    assert foreign
    check(report)
    assert [one.backend for one in report.footprints] == ["ort-cpu", "onnx:other"]
    assert all(one.reason is None and one.open_ms and one.peak_seq_len == 9 for one in report.footprints)
    assert any(row.units_per_s for row in report.rows)


def test_real_validation_of_streams_follows_it(causal_byte_bundle: Bundle) -> None:
    options = ValidationOptions(
        backends=("ort-cpu", "stream:ort-cpu"), seq_lens=(9, 20), threads=1, latency_budget_s=0.01
    )
    report = validate_bundle(causal_byte_bundle, options)

    assert report
    check(report)
    assert [one.backend for one in report.footprints] == ["ort-cpu", "stream:ort-cpu"]
