from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from flash_export.validators.report.validation_plots import build_error_plot, build_latency_plot
from tests.validators.report.builders import (
    CRASHED,
    FAILED,
    FULL,
    QUANTIZED,
    SKIPPED,
    make_invariance,
    make_latency,
    make_passed,
    make_report,
)

if TYPE_CHECKING:
    from flash_export.report.document import Plot, Series


def find_series(plot: Plot | None, label: str) -> Series:
    assert plot is not None
    return next(one for one in plot.series if one.label == label)


def test_errors_are_drawn_with_the_noise_the_limit_and_the_chunk() -> None:
    rows = make_passed(16), make_passed(4096, max_abs_error=2e-5, max_rel_error=8e-6)
    plot = build_error_plot(make_report(*rows))
    assert plot is not None
    points = find_series(plot, "ort-cpu").points
    assert [(point.x, point.y) for point in points] == [(16, 1e-6), (4096, 8e-6)]
    assert find_series(plot, "PyTorch's own error").line == ((16, 4e-7), (4096, 4e-7))
    assert [round(y, 9) for _, y in find_series(plot, "limit").line] == [6.4e-6, 6.4e-6]
    assert plot.marker == (128, "chunk of 128")
    assert "2.5x the eager model's own; 16% of the limit" in points[0].title


def test_error_of_zero_and_failure_without_a_number_are_drawn() -> None:
    plot = build_error_plot(make_report(make_passed(16, max_abs_error=0.0, max_rel_error=0.0), CRASHED))
    assert find_series(plot, "ort-cpu").points[0].y == 0.0
    (cross,) = find_series(plot, "failed without a number").points
    assert (cross.kind, cross.y) == ("cross", None)


def test_masked_rows_are_rings_and_failures_crosses() -> None:
    assert {point.kind for point in find_series(build_error_plot(FULL), "ort-cpu, masked").points} == {"ring", "cross"}


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
    ((_, limit),) = find_series(plot, "limit").line
    for label in ("ort-cpu", "ort-cpu, masked"):
        assert (find_series(plot, label).points[0].y or 0.0) < limit


def test_quantized_report_has_no_floor_that_is_not_its_own() -> None:
    plot = build_error_plot(QUANTIZED)
    assert plot is not None
    assert [one.label for one in plot.series] == ["limit", "ort-cpu", "ort-cpu, masked"]
    assert "PyTorch" not in plot.caption


def test_failed_check_is_the_one_that_is_drawn() -> None:
    """It may have failed by its divergence, with an error below that of another one of its length."""
    failed = make_passed(257, status="failed", reason="they diverge", max_abs_error=1e-6, batch=3)
    plot = build_error_plot(make_report(make_passed(257), failed))
    (point,) = find_series(plot, "ort-cpu").points
    assert point.kind == "cross"


def test_latency_of_the_smallest_batch_is_drawn_with_the_intervals_of_its_medians() -> None:
    plot = build_latency_plot(make_report(make_passed(16), make_passed(64), make_passed(64, batch=3)))
    assert plot is not None
    assert "batch size 1" in plot.caption
    series = {one.label: one.points for one in plot.series}
    assert list(series) == ["eager PyTorch", "ort-cpu"]
    eager, ours = (points[1] for points in series.values())
    assert (eager.y, ours.y, ours.spread) == (6.0, 2.0, (1.9, 2.1))
    assert ours.title == "ort-cpu, length 64: 2 ms (1.9 to 2.1 ms); 3.0x as fast as eager"


def test_compiled_model_is_a_series_of_its_own() -> None:
    plot = build_latency_plot(make_report(make_passed(16, compiled_latency_ms=make_latency(4.0)), make_passed(32)))
    assert [point.y for point in find_series(plot, "torch.compile").points] == [4.0]


def test_every_backend_has_its_own_eager_line() -> None:
    plot = build_latency_plot(make_report(make_passed(16), make_passed(16, backend="trt:small")))
    assert plot is not None
    assert [one.label for one in plot.series] == [
        "eager PyTorch beside ort-cpu", "ort-cpu", "eager PyTorch beside trt:small", "trt:small"
    ]  # fmt: skip


def test_nothing_timed_is_no_plot() -> None:
    assert build_latency_plot(make_report(FAILED, make_passed(masked=True))) is None
