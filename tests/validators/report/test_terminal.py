from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from flash_export.validators.report.formatting import format_factor, format_percent, format_shape, format_share
from flash_export.validators.report.terminal import print_report
from tests.validators.report.builders import (
    FULL,
    MIXED,
    QUANTIZED,
    SKIPPED,
    make_invariance,
    make_latency,
    make_passed,
    make_report,
)

if TYPE_CHECKING:
    from flash_export.validators.results import Row, ValidationReport


def show(report: ValidationReport, width: int = 200) -> list[str]:
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=width))
    return stream.getvalue().splitlines()


def test_what_was_skipped_is_counted_and_explained() -> None:
    lines = show(MIXED)
    assert lines[-1] == "FAILED  3 passed, 2 failed, 1 skipped"
    assert "skipped trt:big: no CUDA device here" in lines
    assert "failed ort-cpu: max abs error 0.5 exceeds it (batch 3, length 300, masked)" in lines


def test_row_has_error_multiple_share_and_speed() -> None:
    line = next(line for line in show(MIXED) if line.startswith("1 x 1024"))
    assert line.split() == ["1", "x", "1024", "passed", "1.0e-06", "2.5x", "16%", "2", "ms", "6", "ms", "3.0x"]


def test_backend_without_times_has_no_columns_for_them() -> None:
    lines = show(make_report(make_passed(9), make_passed(9, masked=True, backend="stream:ort-cpu")))
    timed, untimed = (line.split() for line in lines if line.startswith("shape"))
    assert timed[-3:] == ["p50", "eager", "speedup"]
    assert untimed[-2:] == ["of", "limit"]


def test_many_rows_are_shown_by_groups_of_lengths() -> None:
    rows = [make_passed(length) for length in range(128, 256)]
    lines = show(make_report(*rows, make_passed(4096)))
    assert len(lines) < 15
    assert any(line.split()[:3] == ["129-255", "127", "passed"] for line in lines)
    assert any(line.split()[:3] == ["4096", "1", "passed"] for line in lines)


def test_invariances_and_costs_are_a_line_each() -> None:
    lines = show(FULL)
    assert "Invariances: padding failed, 1 hold" in lines
    assert "Invariances: all 1 hold" in lines
    assert "Fresh: opens 85 ms, first call 12 ms, new shape +6 ms, 182 MiB at 4096" in lines


def test_facts_stand_above_the_verdict() -> None:
    compiled = make_latency(4.0)
    report = make_report(
        make_passed(4096, compiled_latency_ms=compiled), bits={"eager": 0.9823, "ort-cpu": 0.9824}
    )  # fmt: skip
    assert show(report)[-6:] == [
        "Largest error: 16% of the limit, 1.0e-06 of the largest output, 2.5x the eager model's own, at batch 1, "
        "length 4096",
        "At the worst: same top token 100%, divergence 1e-09 bits per prediction",
        "Bits per byte: eager 0.9823, ort-cpu 0.9824",
        "Speed: ort-cpu takes 2 ms (1.9 to 2.1 ms), 2,050,000 tokens/s, 3.0x as fast as eager, at batch 1, length 4096",
        "torch.compile takes 4 ms there",
        "PASSED  1 passed, 0 failed, 0 skipped",
    ]


def test_speed_that_may_be_chance_is_told_as_such() -> None:
    lines = show(make_report(make_passed(9, eager_latency_ms=make_latency(2.05), speedup=1.025)))
    assert any(line.startswith("Speed: ") and line.endswith("; their intervals overlap") for line in lines)


def test_diagnosis_is_right_above_the_verdict() -> None:
    assert show(FULL)[-2] == "ort-cpu: it is right without padding and wrong with it"


@pytest.mark.parametrize("count", [1, 50])
def test_tables_fit_80_columns(count: int) -> None:
    slow: dict[str, Any] = {
        "latency_ms": make_latency(0.1234),
        "eager_latency_ms": make_latency(0.4321),
        "speedup": 0.123,
    }
    special: tuple[dict[str, Any], ...] = ({"masked": True}, {"inputs": "recorded"})
    rows = [make_passed(65536, backend="trt:forward", batch=64, **one, **slow) for one in special] * count
    wrong = make_passed(65535, status="failed", reason="no", max_abs_error=1e30, noise=1e-12, max_rel_error=1e30)
    lines = show(make_report(*rows, wrong, make_invariance("repeat")), width=80)

    table = [line for line in lines if line.startswith(("64 x", "6553", "1 x"))]
    assert table
    assert all(len(line) <= 80 for line in table)
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize(("rows", "word"), [((make_passed(),), "PASSED"), ((SKIPPED,), "NOT VALIDATED"), ((), "NOT")])
def test_last_line_is_the_verdict(rows: tuple[Row, ...], word: str) -> None:
    assert show(make_report(*rows))[-1].startswith(word)


def test_quantized_bundle_is_told_by_what_it_loses_and_not_by_an_error_that_is_no_one_s() -> None:
    lines = show(QUANTIZED)
    assert lines[-6:] == [
        "skipped ort-cuda and stream:ort-cuda: no CUDA device here",
        "Bits per byte: eager 0.9823, ort-cpu 0.9856 (0.34% more bits per byte, 0.50% is accepted)",
        "Largest error: 60% of the limit, 3.0e-01 of the largest output, at batch 1, length 389, masked",
        "At the worst: same top token 97.6%, divergence 0.008 bits per prediction, on held-out data (same top token "
        "50%, divergence 0.07 bits per prediction on random inputs)",
        "Speed: ort-cpu takes 2 ms (1.9 to 2.1 ms), 258,000 tokens/s, 3.0x as fast as eager, at batch 1, length 515, "
        "held-out",
        "PASSED  4 passed, 0 failed, 2 skipped",
    ]
    heading = next(line for line in lines if line.startswith("shape"))
    assert heading.split() == ["shape", "result", "error", "of", "limit", "p50", "eager", "speedup"]
    assert not any("eager model's own" in line for line in lines)


@pytest.mark.parametrize("report", [FULL, MIXED, QUANTIZED, make_report(make_passed(9), make_passed(1024, noise=1e-9))])
def test_largest_error_is_the_largest_of_the_table(report: ValidationReport) -> None:
    """The same rows, in the same unit."""
    lines = show(report)
    (fact,) = (line for line in lines if line.startswith("Largest error: "))
    compared = [row for row in report.rows if row.check == "accuracy" and row.max_abs_error and row.tolerance]
    shares = {index: (row.max_abs_error or 0) / (row.tolerance or 1) for index, row in enumerate(compared)}
    worst = max(shares, key=lambda index: shares[index])
    row, share = compared[worst], shares[worst]
    assert fact.startswith(f"Largest error: {format_share(row)}, ")
    assert fact.endswith(f"at {format_shape(row)}")
    shown = f"{format_factor(share)}x" if share >= 2 else format_percent(share)
    assert any(shown in line.split() for line in lines if line.startswith(f"{row.batch} x {row.seq_len}"))
