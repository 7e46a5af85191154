from __future__ import annotations

import re
from dataclasses import replace

from flash_export.validators.report.axes import build_error_axis
from flash_export.validators.report.plots import Plot, Series, build_error_plot
from tests.validators.report.builders import (
    CRASHED,
    FULL,
    QUANTIZED,
    SKIPPED,
    make_invariance,
    make_passed,
    make_report,
)


def find_series(plot: Plot | None, label: str) -> Series:
    assert plot is not None
    return next(one for one in plot.series if one.label == label)


def test_larger_errors_are_higher_and_longer_sequences_to_the_right() -> None:
    rows = make_passed(16), make_passed(4096, max_abs_error=2e-5, max_rel_error=8e-6)
    plot = build_error_plot(make_report(*rows))

    small, large = find_series(plot, "ort-cpu").marks
    assert small.x < large.x
    assert small.y > large.y  # SVG counts downwards
    assert plot is not None
    assert plot.marker is not None
    assert small.x < plot.marker.position < large.x


def test_error_lies_between_the_noise_and_the_limit() -> None:
    plot = build_error_plot(make_report(make_passed(16), make_passed(32)))

    mark = find_series(plot, "ort-cpu").marks[0]
    noise, limit = find_series(plot, "PyTorch's own error"), find_series(plot, "limit")
    heights = [float(one.path.split()[1]) for one in (noise, limit)]
    assert heights[0] > mark.y > heights[1]
    assert noise.area.startswith(noise.path)
    assert noise.area.endswith("Z")
    assert "2.5x the eager model's own; 16% of the limit" in mark.title


def test_error_of_zero_and_failure_without_a_number_are_drawn() -> None:
    plot = build_error_plot(make_report(make_passed(16, max_abs_error=0.0, max_rel_error=0.0), CRASHED))

    assert plot is not None
    assert find_series(plot, "ort-cpu").marks[0].y == max(tick.position for tick in plot.y_ticks)
    assert find_series(plot, "failed without a number").marks[0].kind == "cross"


def test_masked_rows_are_rings_and_failures_crosses() -> None:
    plot = build_error_plot(FULL)
    assert {mark.kind for mark in find_series(plot, "ort-cpu, masked").marks} == {"ring", "cross"}


def test_nothing_compared_is_no_plot() -> None:
    assert build_error_plot(make_report(SKIPPED)) is None
    assert build_error_plot(make_report(make_invariance("padding"))) is None


def test_report_without_noise_has_no_band() -> None:
    plot = build_error_plot(make_report(replace(make_passed(), noise=None)))
    assert plot is not None
    assert [one.label for one in plot.series] == ["limit", "ort-cpu"]


def test_every_row_that_passed_is_below_the_limit() -> None:
    """The rows of a length may have very different limits: what is masked sees less of the text."""
    strict = make_passed(64, masked=True, max_abs_error=1e-7, max_rel_error=4e-8, noise=1e-8, tolerance=1e-6)
    plot = build_error_plot(make_report(strict, make_passed(64)))
    height = float(find_series(plot, "limit").path.split()[1])
    assert find_series(plot, "ort-cpu").marks[0].y > height
    assert find_series(plot, "ort-cpu, masked").marks[0].y > height


def test_error_too_small_for_a_power_of_ten_is_drawn_at_the_edge() -> None:
    axis, ticks = build_error_axis([5e-324, 1e-3])
    assert axis.place(5e-324) == axis.place(1e-300) == ticks[0].position


def test_limit_is_drawn_at_a_single_length_too() -> None:
    plot = build_error_plot(make_report(make_passed(257)))
    assert plot is not None
    for label in ("limit", "PyTorch's own error"):
        (series,) = (one for one in plot.series if one.label == label)
        start, end = (float(x) for x in re.findall(r"[ML]\s?([\d.]+) ", series.path))
        assert end - start == 16.0


def test_quantized_report_has_no_floor_that_is_not_its_own() -> None:
    plot = build_error_plot(QUANTIZED)
    assert plot is not None
    assert [one.label for one in plot.series] == ["limit", "ort-cpu", "ort-cpu, masked"]
    assert "PyTorch" not in plot.caption


def test_failed_check_is_the_one_that_is_drawn() -> None:
    """It may have failed by its divergence, with an error below that of another one of its length."""
    failed = make_passed(257, status="failed", reason="they diverge", max_abs_error=1e-6, batch=3)
    plot = build_error_plot(make_report(make_passed(257), failed))
    assert plot is not None
    (mark,) = (mark for one in plot.series if one.label == "ort-cpu" for mark in one.marks)
    assert mark.kind == "cross"
