from __future__ import annotations

import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from importlib import resources
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import jsonschema
import pytest
from rich.console import Console

from flash_export.errors import BundleError
from flash_export.validators.latency import Percentiles
from flash_export.validators.report.files import write_report
from flash_export.validators.report.html import render_html
from flash_export.validators.report.plots import build_error_plot
from flash_export.validators.report.summary import summarize
from flash_export.validators.report.terminal import print_report
from flash_export.validators.results import Row, ValidationReport

if TYPE_CHECKING:
    from pathlib import Path

ENVIRONMENT: dict[str, str | int] = {
    "model_type": "flash",
    "chunk_size": 128,
    "flash_export": "0.1.0",
    "python": "3.11",
    "torch": "2.13",
    "created": "2026-01-01T00:00:00+00:00",
}


def make_passed(seq_len: int = 257, *, masked: bool = False, backend: str = "ort-cpu") -> Row:
    timed = not masked
    return Row(
        backend,
        "forward",
        1,
        seq_len,
        masked,
        "passed",
        max_abs_error=2.5e-6,
        max_rel_error=1e-6,
        noise=8e-7,
        tolerance=2.5e-4,
        top1_agreement=1.0,
        kl_bits=1e-9,
        latency_ms=Percentiles(2.0, 3.0, 4.0, 1.9, 2.1, 20) if timed else None,
        eager_latency_ms=Percentiles(6.0, 7.0, 8.0, 5.9, 6.1, 20) if timed else None,
        first_latency_ms=9.0 if timed else None,
        speedup=3.0 if timed else None,
    )


FAILED = Row(
    "ort-cpu",
    "forward",
    3,
    300,
    True,
    "failed",
    "max abs error 0.5 exceeds it",
    max_abs_error=0.5,
    max_rel_error=0.1,
    tolerance=2.5e-4,
)
CRASHED = Row("ort-cpu", "forward", 1, 301, False, "failed", "Fail: <b>bad</b> & worse")
SKIPPED = Row("trt:big", "forward", None, None, False, "skipped", "no CUDA device here")


def make_report(*rows: Row, bits: dict[str, float] | None = None) -> ValidationReport:
    return ValidationReport("bundle", ENVIRONMENT, rows, bits)


def load_schema() -> dict[str, Any]:
    path = resources.files("flash_export.validators.report").joinpath("schema.json")
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


MIXED = make_report(make_passed(), make_passed(masked=True), make_passed(1024), FAILED, CRASHED, SKIPPED)


@pytest.mark.parametrize(
    ("rows", "passed"),
    [
        ((make_passed(), SKIPPED), True),
        ((make_passed(), FAILED), False),
        ((SKIPPED,), False),
        ((), False),
    ],
)
def test_passing_needs_a_passed_row_and_no_failed_one(rows: tuple[Row, ...], passed: bool) -> None:
    report = make_report(*rows)
    assert bool(report) is report.passed is report.to_dict()["passed"] is passed


def test_json_follows_the_schema() -> None:
    schema = load_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for report in (MIXED, make_report(make_passed(), bits={"eager": 2.5, "ort-cpu": 2.5})):
        jsonschema.validate(json.loads(report.to_json()), schema)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("status", "ok"),
        ("max_abs_error", None),
        ("seq_len", 0),
        ("speedup", "3"),
        ("backend", "eager"),
        ("latency_ms", {"p50": 1.0}),
    ],
)
def test_schema_refuses_other_reports(field: str, value: object) -> None:
    document = make_report(make_passed()).to_dict()
    document["rows"][0][field] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, load_schema())


def test_schema_refuses_a_failure_without_a_reason() -> None:
    document = make_report(FAILED).to_dict()
    document["rows"][0]["reason"] = None
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, load_schema())


def test_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        make_report(make_passed(), bits={"eager": float("nan")}).to_json()


def test_terminal_counts_what_was_skipped() -> None:
    stream = io.StringIO()
    print_report(MIXED, Console(file=stream, width=200))
    lines = stream.getvalue().splitlines()

    assert lines[-1] == "FAILED  3 passed, 2 failed, 1 skipped"
    assert "skipped trt:big: no CUDA device here" in lines
    assert any("2.5e-06" in line and "3.00x" in line for line in lines)


def test_terminal_table_fits_80_columns() -> None:
    longest = dataclasses.replace(make_passed(), backend="trt:forward", batch=64, seq_len=65536, masked=True)
    stream = io.StringIO()
    print_report(make_report(longest), Console(file=stream, width=80))
    assert "…" not in stream.getvalue()
    assert "64x65536" in stream.getvalue()


@pytest.mark.parametrize(("rows", "word"), [((make_passed(),), "PASSED"), ((SKIPPED,), "NOT VALIDATED")])
def test_terminal_ends_with_the_verdict(rows: tuple[Row, ...], word: str) -> None:
    stream = io.StringIO()
    print_report(make_report(*rows), Console(file=stream, width=200))
    assert stream.getvalue().splitlines()[-1].startswith(word)


def test_many_reasons_are_cut_short_but_counted() -> None:
    failures = [dataclasses.replace(FAILED, seq_len=300 + index, reason=f"error {index}") for index in range(20)]
    summary = summarize(make_report(make_passed(), *failures, SKIPPED))

    assert [reason.text for reason in summary.reasons] == [*(f"error {index}" for index in range(6)), SKIPPED.reason]
    assert summary.hidden_reasons == 14
    page = render_html(make_report(make_passed(), *failures, SKIPPED))
    assert "and 14 more" in page
    assert "error 19" in page


def test_largest_error_of_a_failure_is_shown() -> None:
    assert "2000 times" in render_html(MIXED)


def test_page_needs_nothing_else() -> None:
    page = render_html(MIXED)

    assert not re.search(r"https?://|<script|<link|@import|url\(|src=", page)
    assert "prefers-color-scheme: dark" in page


def test_page_says_what_happened() -> None:
    page = render_html(MIXED)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))

    assert "does not give the same answers" in text
    assert "3 passed" in text
    assert "2 failed" in text
    assert "1 was skipped" in text
    assert "no CUDA device here" in text
    assert "&lt;b&gt;bad&lt;/b&gt; &amp; worse" in page
    assert page.count('class="status passed">passed') == 3
    passing = render_html(make_report(make_passed(), bits={"eager": 2.1234, "ort-cpu": 2.1235}))
    assert "gives the same answers" in passing
    assert "2.1235" in passing
    assert "Nothing was checked" in render_html(make_report(SKIPPED))


def test_page_is_balanced_html() -> None:
    class Balance(HTMLParser):
        VOID = ("meta", "circle", "line", "path")

        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in self.VOID:
                self.open.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            assert tag in self.VOID

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    parser = Balance()
    parser.feed(render_html(MIXED))
    assert parser.open == []


def test_plots_place_larger_errors_higher_and_longer_sequences_to_the_right() -> None:
    rows = make_passed(16), dataclasses.replace(make_passed(4096), max_abs_error=2e-5)
    plot = build_error_plot(make_report(*rows))

    assert plot is not None
    small, large = next(one.marks for one in plot.series if one.label == "ort-cpu")
    assert small.x < large.x
    assert small.y > large.y  # SVG counts downwards
    assert plot.marker is not None
    assert small.x < plot.marker.position < large.x


def test_error_of_zero_and_failure_without_a_number_are_drawn() -> None:
    exact = dataclasses.replace(make_passed(16), max_abs_error=0.0)
    plot = build_error_plot(make_report(exact, CRASHED))

    assert plot is not None
    marks = {one.label: one.marks for one in plot.series}
    assert marks["ort-cpu"][0].y == max(tick.position for tick in plot.y_ticks)
    assert marks["failed without a number"][0].kind == "cross"


def test_plots_are_well_formed_and_explain_every_point() -> None:
    drawings = re.findall(r"<svg viewBox=\"0 0 560.*?</svg>", render_html(MIXED), re.DOTALL)

    assert len(drawings) == 2
    for drawing in drawings:
        root = ET.fromstring(drawing)
        marks = root.findall(".//g[@class='mark']")
        assert marks
        assert all(mark.findtext("title") for mark in marks)


def test_page_without_numbers_has_no_plots() -> None:
    assert "<figure>" not in render_html(make_report(SKIPPED))


def test_files_are_written_whole(tmp_path: Path) -> None:
    page = write_report(MIXED, tmp_path / "reports", tmp_path / "copy.json")

    assert page == tmp_path / "reports" / "report.html"
    assert json.loads((tmp_path / "reports" / "report.json").read_text()) == json.loads(MIXED.to_json())
    assert (tmp_path / "copy.json").read_text() == MIXED.to_json()
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["copy.json", "report.html", "report.json"]


def test_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(BundleError, match="cannot write"):
        write_report(MIXED, tmp_path / "taken")
