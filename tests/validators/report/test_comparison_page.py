"""What the terminal and Markdown say of a comparison."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from flash_export.report.markdown import render_markdown
from flash_export.report.terminal import print_document
from flash_export.validators.report.comparison import compare_reports
from flash_export.validators.report.comparison_page import describe_comparison
from tests.validators.report.builders import (
    ENVIRONMENT,
    FAILED,
    FOOTPRINT,
    FULL,
    SKIPPED,
    make_latency,
    make_passed,
    make_report,
)

if TYPE_CHECKING:
    from flash_export.validators.report.comparison import Comparison

BROKEN = replace(FAILED, batch=1, seq_len=257, masked=False)


def render_comparison_markdown(comparison: Comparison) -> str:
    return render_markdown(describe_comparison(comparison))


def show(comparison: Comparison) -> list[str]:
    stream = io.StringIO()
    print_document(describe_comparison(comparison), Console(file=stream, width=200))
    return [" ".join(line.split()) for line in stream.getvalue().splitlines()]


def test_values_that_differ_are_told() -> None:
    before = make_report(make_passed(), bits={"eager": 1.5, "ort-cpu": 1.5}, footprints=(FOOTPRINT,))
    after = replace(
        make_report(make_passed(), bits={"eager": 1.50001, "ort-cpu": 1.6}),
        footprints=(replace(FOOTPRINT, peak_bytes=300 << 20),),
        environment={**ENVIRONMENT, "torch": "2.14", "gpu": "H100", "created": "2027-01-01T00:00:00+00:00"},
    )
    lines = show(compare_reports(before, after))

    assert "ort-cpu 1.5000, now 1.6000" in lines
    assert "ort-cpu at 4096 tokens 182 MiB, now 300 MiB" in lines
    assert "torch 2.13, now 2.14" in lines
    assert "gpu none, now H100" in lines
    assert not any(line.startswith(("created", "eager")) for line in lines)


def test_checks_of_one_run_alone_are_counted() -> None:
    comparison = compare_reports(make_report(make_passed(), SKIPPED), make_report(make_passed(), make_passed(9)))
    assert (comparison.dropped, comparison.added) == ({"trt:big": 1}, {"ort-cpu": 1})
    assert "trt:big 1 only in the first run, 0 only in the second" in show(comparison)
    assert show(comparison)[-1] == (
        "NO WORSE Nothing that passed before fails now; 1 checks in both, 0 faster, 0 slower."
    )


def test_markdown_says_the_same() -> None:
    comparison = compare_reports(make_report(make_passed()), make_report(BROKEN))
    lines = render_comparison_markdown(comparison).splitlines()
    assert lines[0] == "## ❌ 1 of 1 checks in both passed before and fails now."
    assert "| ort-cpu, batch 1, length 257 | passed before, failed now, 2,000 times the limit |" in lines
    assert render_comparison_markdown(compare_reports(FULL, FULL)).startswith("## ✅ Nothing that passed before")


def test_long_lists_are_cut_short() -> None:
    before = [make_passed(length) for length in range(1, 41)]
    after = [replace(BROKEN, seq_len=row.seq_len) for row in before]
    comparison = compare_reports(make_report(*before), make_report(*after))
    assert "and 20 more" in show(comparison)
    assert "and 20 more" in render_comparison_markdown(comparison)
    assert len(comparison.regressions) == 40


def test_new_failure_is_told_when_the_whole_passed_before() -> None:
    comparison = compare_reports(make_report(make_passed()), make_report(make_passed(), FAILED))
    assert show(comparison)[-1] == "WORSE The first run passed as a whole and the second does not; 1 checks in both."


def test_verdict_and_error_are_told_with_their_numbers() -> None:
    lines = show(compare_reports(make_report(make_passed(), make_passed(9)), make_report(BROKEN, make_passed(9))))
    assert "ort-cpu, batch 1, length 257 passed before, failed now, 2,000 times the limit" in lines
    assert "ort-cpu, batch 1, length 257 1.0e-06, now 1.0e-01, 100,000 times" in lines
    assert lines[-1] == "WORSE 1 of 2 checks in both passed before and fails now."
    exact = make_report(make_passed(max_rel_error=0.0))
    text = render_comparison_markdown(compare_reports(exact, make_report(make_passed())))
    assert "| ort-cpu, batch 1, length 257 | 0, now 1.0e-06 |" in text


@pytest.mark.parametrize(("p50", "words"), [(2.3, "1.1 times slower"), (1.0, "2.0 times faster")])
def test_latency_is_told_beside_that_of_the_eager_model(p50: float, words: str) -> None:
    after = make_passed(latency_ms=make_latency(p50), eager_latency_ms=make_latency(9.0))
    (line,) = (
        line for line in show(compare_reports(make_report(make_passed()), make_report(after))) if "times" in line
    )
    assert words in line
    assert line.endswith("; eager takes 1.5 times as long as before")


def test_failure_by_something_else_than_its_error_has_its_reason_and_not_a_share() -> None:
    diverges = make_passed(status="failed", reason="the predictions diverge by 0.25 bits")
    lines = show(compare_reports(make_report(make_passed()), make_report(diverges)))
    assert "ort-cpu, batch 1, length 257 passed before, failed now: the predictions diverge by 0.25 bits" in lines
