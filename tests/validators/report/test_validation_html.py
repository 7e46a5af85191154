from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from flash_export.report.html import render_html as render_document
from flash_export.validators.report.validation import describe_validation
from tests.validators.report.builders import (
    DECLARED,
    FAILED,
    FULL,
    MIXED,
    QUANTIZED,
    SKIPPED,
    make_latency,
    make_passed,
    make_report,
)

if TYPE_CHECKING:
    from flash_export.validators.results import ValidationReport


def render_html(report: ValidationReport) -> str:
    return render_document(describe_validation(report))


def read_text(report: ValidationReport) -> str:
    page = render_html(report)
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    return unescape(text).replace("\N{MULTIPLICATION SIGN}", "x")


def test_page_needs_nothing_else() -> None:
    page = render_html(FULL)
    assert not re.search(r"https?://|<script|<link|@import|url\(|src=", page)
    assert "prefers-color-scheme: dark" in page


def test_page_says_what_happened() -> None:
    page, text = render_html(MIXED), read_text(MIXED)

    assert "does not give the same answers" in text
    assert "3 passed" in text
    assert "2 failed" in text
    assert "1 skipped" in text
    assert "no CUDA device here" in text
    assert "2,000 times the limit" in text
    assert "&lt;b&gt;bad&lt;/b&gt; &amp; worse" in page
    assert page.count(' status passed">passed') == 3
    assert "Nothing was checked" in read_text(make_report(SKIPPED))


def test_page_of_a_good_bundle_tells_error_and_speed_at_a_glance() -> None:
    rows = make_passed(), make_passed(4096), make_passed(9, backend="trt:small")
    bits = {"eager": 2.1234, "ort-cpu": 2.1235, "trt:small": 2.1234}
    text = read_text(make_report(*rows, bits=bits))

    assert "gives the same answers" in text
    assert "plan quick" in text
    assert "Largest error 16% of the limit" in text
    assert "2.5x PyTorch's own error in fp32, 1.0e-06 of the largest output, at batch 1, length 257" in text
    assert "Same top token 100%" in text
    assert "Bits per byte, ort-cpu 2.1235 PyTorch has 2.1234 on the same held-out data" in text
    assert "Speed at 4,096 tokens 3.0x PyTorch's" in text
    assert "2,050,000 tokens/s" in text


def test_speed_that_may_be_chance_is_told_as_such() -> None:
    near = make_passed(9, eager_latency_ms=make_latency(2.05), speedup=1.025)
    assert "intervals of both overlap" in read_text(make_report(near))
    assert "intervals of both overlap" not in read_text(make_report(make_passed()))


def test_diagnosis_stands_right_below_the_verdict() -> None:
    text = read_text(FULL)
    verdict, diagnosis, counts = map(
        text.rindex, ("not give the same answers as", "right without padding and wrong with it", "7 passed, 3 failed")
    )
    assert verdict < diagnosis < counts
    assert 'class="alarms"' not in render_html(MIXED)


def test_claims_are_a_table_of_their_own_with_what_they_say() -> None:
    text = read_text(FULL)
    assert "What must hold of any model" in text
    assert "The same input twice must give the same bits holds to the bit holds to the bit repeat" in text
    assert "broken: masked tokens on the right must change nothing; it differs by 1" in text
    assert "What must hold of any model" not in read_text(MIXED)


def test_check_of_declared_shapes_is_a_claim_without_numbers() -> None:
    declared = replace(DECLARED, status="passed", reason=None)
    text = read_text(make_report(declared, replace(DECLARED, backend="onnx:b")))
    assert "declare no fixed size for an axis that may be any holds broken: it has seq=8 symbolic-shape" in text


def test_costs_of_a_fresh_process_are_shown() -> None:
    text = read_text(FULL)
    assert "ort-cpu 85 ms 24 MiB 12 ms 6 ms 182 MiB 4096" in text
    assert "not measured: it took more than 600 s" in text
    assert "In a fresh process" not in read_text(MIXED)


def test_timings_have_intervals_and_the_compiled_model_if_it_was_timed() -> None:
    text = read_text(FULL)
    assert "1.9 to 2.1 ms 3 ms 4 ms 20 9 ms 6 ms" in text
    assert "torch.compile Speed x eager" in text
    assert "torch.compile Speed" not in read_text(MIXED)


def test_page_without_numbers_has_no_plots() -> None:
    page = render_html(make_report(SKIPPED))
    assert "<figure>" not in page
    assert "Every timing" not in page


def test_plots_are_well_formed_and_explain_every_point() -> None:
    drawings = re.findall(r"<svg viewBox=\"0 0 560.*?</svg>", render_html(FULL), re.DOTALL)

    assert len(drawings) == 2
    for drawing in drawings:
        root = ET.fromstring(drawing)
        marks = root.findall(".//g[@class='mark']")
        assert marks
        assert all(mark.findtext("title") for mark in marks)


@pytest.mark.parametrize("report", [FULL, MIXED, make_report(SKIPPED), make_report(), make_report(FAILED)])
def test_page_is_balanced_html(report: ValidationReport) -> None:
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
    parser.feed(render_html(report))
    assert parser.open == []


def test_rows_of_a_table_have_as_many_cells_as_its_head() -> None:
    tables = re.findall(r"<table>.*?</table>", render_html(FULL), re.DOTALL)
    assert len(tables) == 5
    for table in tables:
        head, *rows = re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
        assert {len(re.findall(r"<td", row)) for row in rows} == {len(re.findall(r"<th[ >]", head))}


def test_page_of_a_quantized_bundle_has_its_own_headline_limits_and_explanations() -> None:
    text = read_text(QUANTIZED)
    for part in (
        "The int8 model loses no more than it may: 0.34% more bits per byte, 0.50% is accepted.",
        "Bits per byte, ort-cpu +0.34% 0.9856, 0.34% more bits per byte; PyTorch has 0.9823 on the same held-out data; "
        "+0.50% is accepted",
        "Largest error 60% of the limit 3.0e-01 of the largest output, at batch 1, length 389, masked",
        "Same top token 97.6% of held-out data, in the worst check",
        "; 50% of random inputs",
        "measured a loss of 0.31% on held-out text when it made the model",
        "limit of a single check is wide: 50% of the largest output, and divergence up to 0.2",
    ):
        assert part in text
    for claim in ("same answers", "PyTorch's own error", "the original's own error", "grey edge", "cost nothing"):
        assert claim not in text, claim


def test_a_quantized_page_without_its_facts_is_a_page() -> None:
    """As of a report that an older version wrote, of a bundle without held-out text."""
    text = read_text(replace(QUANTIZED, environment={"precision": "int8"}, scores=None))
    assert "The int8 model loses no more than it may." in text
    assert "is accepted" not in text


def test_user_s_tolerance_is_named_as_the_limit() -> None:
    report = make_report(make_passed())
    given = replace(report, environment={**report.environment, "tolerance": "0.1 and 0 of the largest output"})
    assert "--rtol : 0.1 and 0 of the largest output." in read_text(given)
    assert "a fixed multiple of the original's own error" not in read_text(given)


def test_skip_of_a_backend_stands_once() -> None:
    assert read_text(QUANTIZED).count(str(SKIPPED.reason)) == 1


def test_remarks_stand_below_their_row_and_not_in_a_column_that_leaves_the_page() -> None:
    page = render_html(FULL)
    remarks = re.findall(r'<tr class="remark"><td colspan="\d+"><span>(.*?)</span></td></tr>', page)
    assert "Remark" not in page
    assert remarks == [
        "not measured: it took more than 600 s",
        "max abs error 0.5 exceeds it",
        "Fail: &lt;b&gt;bad&lt;/b&gt; &amp; worse",
    ]
    for table in re.findall(r"<table>.*?</table>", page, re.DOTALL):
        spans = {int(span) for span in re.findall(r'colspan="(\d+)"', table)}
        assert spans <= {len(re.findall(r"<th[ >]", table))}


def test_one_check_is_told_in_the_singular() -> None:
    text = read_text(make_report(make_passed(1)))
    assert "random inputs, 1 token long, in batches of 1" in text
    assert "1 passed, 0 failed, 0 skipped" in text
    assert "Speed at 1 token " in text
