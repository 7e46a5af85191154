from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from flash_export.validators.report.comparison import compare_reports
from flash_export.validators.report.comparison_page import describe_comparison
from tests.validators.report.builders import (
    FAILED,
    FOOTPRINT,
    FULL,
    MIXED,
    QUANTIZED,
    SKIPPED,
    make_few_bits,
    make_latency,
    make_passed,
    make_report,
)

if TYPE_CHECKING:
    from flash_export.validators.results import Row

BROKEN = replace(FAILED, batch=1, seq_len=257, masked=False)


def test_report_is_no_worse_than_itself() -> None:
    for report in (FULL, MIXED, QUANTIZED, make_report(make_passed()), make_report(SKIPPED), make_report()):
        comparison = compare_reports(report, report)
        assert comparison
        assert not any(section.block for section in describe_comparison(comparison).sections)
        assert comparison.shared == len(report.rows)


@pytest.mark.parametrize(
    ("before", "after", "is_worse"),
    [
        ((make_passed(),), (BROKEN,), True),
        ((BROKEN,), (make_passed(),), False),
        ((BROKEN,), (BROKEN,), False),
        ((make_passed(),), (make_passed(), make_passed(512)), False),
        ((make_passed(),), (make_passed(), FAILED), True),  # a new check, but the whole passed before
        ((make_passed(), FAILED), (make_passed(), FAILED, replace(FAILED, seq_len=9)), False),
        ((make_passed(), make_passed(512)), (make_passed(512),), False),
        ((make_passed(),), (SKIPPED,), True),  # nothing is proven any more
    ],
)
def test_worse_is_what_fails_now_and_passed_before(
    before: tuple[Row, ...], after: tuple[Row, ...], is_worse: bool
) -> None:
    assert bool(compare_reports(make_report(*before), make_report(*after))) is not is_worse


def test_verdicts_that_changed_are_told_the_worst_first() -> None:
    mended = make_passed(512)
    old = make_report(make_passed(), replace(BROKEN, seq_len=512))
    comparison = compare_reports(old, make_report(mended, BROKEN, replace(BROKEN, seq_len=9)))

    assert [(change.row.seq_len, change.before, change.row.status) for change in comparison.verdicts] == [
        (257, "passed", "failed"), (512, "failed", "passed"), (9, None, "failed")
    ]  # fmt: skip
    assert [change.row for change in comparison.regressions] == [BROKEN]


def test_of_two_rows_that_check_the_same_the_failed_one_counts() -> None:
    unread = replace(make_passed(), status="failed", reason="held-out data: no", max_abs_error=None)
    assert compare_reports(make_report(make_passed()), make_report(make_passed(), unread)).regressions
    assert compare_reports(make_report(make_passed()), make_report(unread, make_passed())).regressions


@pytest.mark.parametrize(("error", "is_change"), [(1.3e-6, False), (0.7e-6, False), (1.5e-6, True), (0.5e-6, True)])
def test_error_has_to_move_by_more_than_the_eager_models_own(error: float, is_change: bool) -> None:
    after = make_passed(max_rel_error=error)  # from 1e-6, with a noise of 4e-7
    changes = compare_reports(make_report(make_passed()), make_report(after)).errors
    assert bool(changes) is is_change
    if changes:
        assert changes[0].factor == pytest.approx(error / 1e-6)


def test_error_of_zero_has_no_factor_and_unknown_noise_no_change() -> None:
    exact, unknown = make_passed(max_rel_error=0.0), make_passed(max_rel_error=1e-3, noise=None)
    (change,) = compare_reports(make_report(exact), make_report(make_passed())).errors
    assert change.factor is None
    assert compare_reports(make_report(make_passed()), make_report(unknown)).errors == ()


@pytest.mark.parametrize(("p50", "is_slower"), [(2.0, None), (2.15, None), (1.85, None), (2.3, True), (1.0, False)])
def test_latency_is_other_only_if_the_intervals_do_not_overlap(p50: float, is_slower: bool | None) -> None:
    after = make_passed(latency_ms=make_latency(p50), eager_latency_ms=make_latency(9.0))
    comparison = compare_reports(make_report(make_passed()), make_report(after))

    assert comparison
    assert [change.is_slower for change in comparison.latencies] == ([] if is_slower is None else [is_slower])
    assert all(change.factor == pytest.approx(p50 / 2.0) for change in comparison.latencies)
    assert all(change.eager_factor == pytest.approx(1.5) for change in comparison.latencies)


@pytest.mark.parametrize(("peak_mib", "is_change"), [(190, False), (170, False), (300, True), (100, True)])
def test_memory_has_to_move_by_more_than_a_tenth_at_the_same_length(peak_mib: int, is_change: bool) -> None:
    before = make_report(make_passed(), footprints=(FOOTPRINT,))
    other = replace(FOOTPRINT, peak_bytes=peak_mib << 20)
    assert bool(compare_reports(before, replace(before, footprints=(other,))).memory) is is_change
    longer = replace(other, peak_seq_len=8192)
    assert compare_reports(before, replace(before, footprints=(longer,))).memory == ()


def test_errors_of_quantized_bundles_are_compared_in_hundredths() -> None:
    """There is no eager model in few bits whose own error would say what is noise."""
    before = replace(QUANTIZED, rows=(make_few_bits(9, 0.20, 1.0, 0.01), make_few_bits(64, 0.20, 1.0, 0.01)))
    after = replace(QUANTIZED, rows=(make_few_bits(9, 0.215, 1.0, 0.01), make_few_bits(64, 0.23, 1.0, 0.01)))
    (change,) = compare_reports(before, after).errors
    assert (change.row.seq_len, change.before, change.after) == (64, 0.20, 0.23)


def test_budget_that_changed_is_told() -> None:
    other = replace(QUANTIZED, environment={**QUANTIZED.environment, "accepted_loss": "2.00%"})
    (change,) = compare_reports(QUANTIZED, other).environment
    assert (change.name, change.before, change.after) == ("accepted_loss", "0.50%", "2.00%")
