from __future__ import annotations

from dataclasses import replace

import pytest

from flash_export.validators.latency import Percentiles
from flash_export.validators.report.rows import (
    compute_error_ratio,
    compute_noise_multiple,
    compute_relative_limit,
    find_timed,
    find_worst,
    format_interval,
    format_shape,
    format_share,
    select_comparisons,
    select_invariances,
)
from tests.validators.report.builders import (
    CRASHED,
    DECLARED,
    FAILED,
    FULL,
    SKIPPED,
    make_invariance,
    make_latency,
    make_passed,
)


def test_error_is_set_in_relation_to_the_limit_and_to_the_eager_model() -> None:
    row = make_passed()
    assert compute_error_ratio(row) == pytest.approx(2.5e-6 / 1.6e-5)
    assert compute_noise_multiple(row) == pytest.approx(2.5)
    assert compute_relative_limit(row) == pytest.approx(6.4e-6)  # 16 times the noise


def test_what_cannot_be_told_is_none() -> None:
    exact = replace(make_passed(), max_abs_error=0.0, max_rel_error=0.0, noise=0.0)
    assert compute_error_ratio(CRASHED) is compute_noise_multiple(CRASHED) is compute_relative_limit(CRASHED) is None
    assert compute_error_ratio(exact) == 0
    assert compute_noise_multiple(exact) is compute_relative_limit(exact) is None
    assert compute_error_ratio(make_invariance("repeat")) is None  # nothing is accepted, so there is no share of it


def test_rows_are_told_apart() -> None:
    comparisons, invariances = select_comparisons(FULL), select_invariances(FULL)
    assert {row.check for row in invariances} == {"repeat", "padding"}
    assert {row.check for row in comparisons} == {"accuracy"}
    assert len(comparisons) + len(invariances) == len(FULL.rows)


def test_the_worst_row_is_the_one_nearest_its_own_limit() -> None:
    large = make_passed(max_abs_error=1e-3, tolerance=1.0)
    assert find_worst([SKIPPED, large, make_passed(), CRASHED]) == make_passed()
    assert find_worst([SKIPPED, CRASHED]) is None


def test_the_longest_row_of_the_smallest_batch_stands_for_the_times() -> None:
    rows = [make_passed(16), make_passed(4096), make_passed(9000, batch=3), make_passed(5000, masked=True), FAILED]
    assert find_timed(rows) == rows[1]
    assert find_timed([FAILED]) is None
    assert find_timed([replace(rows[0], latency_ms=make_latency(1.0), speedup=None)]) is None


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [(12.1, 12.9, "12.1 to 12.9 ms"), (990.0, 1010.0, "990 ms to 1.01 s"), (1010.0, 1050.0, "1.01 to 1.05 s")],
)
def test_interval_names_its_unit_once_if_it_is_one(low: float, high: float, text: str) -> None:
    assert format_interval(Percentiles(low, low, low, low, high, 5)) == text


def test_shapes_and_shares() -> None:
    assert format_shape(FAILED) == "batch 3, length 300, masked"
    assert format_shape(make_passed(9, inputs="recorded")) == "batch 1, length 9, held-out"
    assert format_shape(SKIPPED) == "not tried"
    assert format_shape(DECLARED) == "any shape"
    assert format_share(FAILED) == "2,000 times the limit"
    assert format_share(make_passed()) == "16% of the limit"
