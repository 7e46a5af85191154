from __future__ import annotations

from flash_export.validators.report.latency_plot import build_latency_plot
from tests.validators.report.builders import FAILED, make_latency, make_passed, make_report


def test_smallest_batch_is_drawn_with_the_intervals_of_its_medians() -> None:
    plot = build_latency_plot(make_report(make_passed(16), make_passed(64), make_passed(64, batch=3)))

    assert plot is not None
    assert "batch size 1" in plot.caption
    series = {one.label: one.marks for one in plot.series}
    assert list(series) == ["eager PyTorch", "ort-cpu"]
    eager, ours = (marks[1] for marks in series.values())
    assert eager.y < ours.y  # SVG counts downwards
    assert ours.spread is not None
    assert ours.spread[1] < ours.y < ours.spread[0]
    assert ours.title == "ort-cpu, length 64: 2 ms (1.9 to 2.1 ms); 3.0x as fast as eager"


def test_compiled_model_is_a_series_of_its_own() -> None:
    plot = build_latency_plot(make_report(make_passed(16, compiled_latency_ms=make_latency(4.0)), make_passed(32)))
    assert plot is not None
    compiled = next(one for one in plot.series if one.label == "torch.compile")
    assert len(compiled.marks) == 1


def test_every_backend_has_its_own_eager_line() -> None:
    plot = build_latency_plot(make_report(make_passed(16), make_passed(16, backend="trt:small")))
    assert plot is not None
    assert [one.label for one in plot.series] == [
        "eager PyTorch beside ort-cpu", "ort-cpu", "eager PyTorch beside trt:small", "trt:small"
    ]  # fmt: skip


def test_nothing_timed_is_no_plot() -> None:
    assert build_latency_plot(make_report(FAILED, make_passed(masked=True))) is None
