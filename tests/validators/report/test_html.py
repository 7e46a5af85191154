from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from flash_export.validators.report.html import render_html
from tests.validators.report.builders import (
    DECLARED,
    FAILED,
    FULL,
    MIXED,
    SKIPPED,
    make_latency,
    make_passed,
    make_report,
)

if TYPE_CHECKING:
    from flash_export.validators.results import ValidationReport


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
    assert "1 was skipped" in text
    assert "no CUDA device here" in text
    assert "2,000x the limit" in text
    assert "&lt;b&gt;bad&lt;/b&gt; &amp; worse" in page
    assert page.count('class="status passed">passed') == 3
    assert "Nothing was checked" in read_text(make_report(SKIPPED))


def test_page_of_a_good_bundle_tells_error_and_speed_at_a_glance() -> None:
    rows = make_passed(), make_passed(4096), make_passed(9, backend="trt:small")
    bits = {"eager": 2.1234, "ort-cpu": 2.1235, "trt:small": 2.1234}
    text = read_text(make_report(*rows, bits=bits))

    assert "gives the same answers" in text
    assert "plan quick" in text
    assert "Largest error 16% of the limit" in text
    assert "2.5x PyTorch's own error in fp32, 1.0e-06 of the largest logit, at batch 1, length 257" in text
    assert "Same top token 100%" in text
    assert "Bits per byte, ort-cpu 2.1235 PyTorch has 2.1234 on the same held-out text" in text
    assert "Speed at 4,096 tokens 3.0x PyTorch's" in text
    assert "2,050,000 tokens/s" in text


def test_speed_that_may_be_chance_is_told_as_such() -> None:
    near = make_passed(9, eager_latency_ms=make_latency(2.05), speedup=1.025)
    assert "intervals of both overlap" in read_text(make_report(near))
    assert "intervals of both overlap" not in read_text(make_report(make_passed()))


def test_diagnosis_stands_right_below_the_verdict() -> None:
    text = read_text(FULL)
    verdict, diagnosis, counts = map(
        text.index, ("not give the same answers as", "right without padding and wrong with it", "checks")
    )
    assert verdict < diagnosis < counts
    assert 'class="diagnosis"' not in render_html(MIXED)


def test_claims_are_a_table_of_their_own_with_what_they_say() -> None:
    text = read_text(FULL)
    assert "What must hold of any model" in text
    assert "The same input twice must give the same bits repeat ✓ holds to the bit" in text
    assert "✕ broken masked tokens on the right must change nothing; it differs by 1" in text
    assert "What must hold of any model" not in read_text(MIXED)


def test_check_of_declared_shapes_is_a_claim_without_numbers() -> None:
    declared = replace(DECLARED, status="passed", reason=None)
    text = read_text(make_report(declared, replace(DECLARED, backend="onnx:b")))
    assert "declare no fixed size for an axis that may be any symbolic-shape ✓ holds ✕ broken it has seq=8" in text


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
