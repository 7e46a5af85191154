"""The plot of latencies by length, with the intervals that hold the medians."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.validators.report.axes import LogAxis, build_latency_axis, build_length_axis
from flash_export.validators.report.formatting import format_factor, format_interval, format_ms
from flash_export.validators.report.plots import COLOURS, Mark, Plot, Series, draw_path, group_by_backend, mark_chunk

if TYPE_CHECKING:
    from flash_export.validators.latency import Percentiles
    from flash_export.validators.results import Row, ValidationReport


def build_latency_plot(report: ValidationReport) -> Plot | None:
    """Plot median latency by length for the smallest batch; None when no latency was measured."""
    timed = [row for row in report.rows if row.latency_ms and row.eager_latency_ms and row.batch]
    if not timed:
        return None
    batch = min(row.batch for row in timed if row.batch)
    rows = [row for row in timed if row.batch == batch]
    x_axis, x_ticks = build_length_axis([row.seq_len for row in rows if row.seq_len])
    found = [
        one
        for row in rows
        for one in (row.latency_ms, row.eager_latency_ms, row.compiled_latency_ms)
        if one is not None
    ]
    y_axis, y_ticks = build_latency_axis([bound for one in found for bound in (one.p50_low, one.p50_high)])

    groups = group_by_backend(rows)
    series = []
    for index, (backend, own) in enumerate(groups):
        style = f"s{index % COLOURS}"
        beside = "" if len(groups) == 1 else f" beside {backend}"
        for label, style_, latencies in (
            (f"eager PyTorch{beside}", f"eager {style}", [row.eager_latency_ms for row in own]),
            (f"torch.compile{beside}", f"compiled {style}", [row.compiled_latency_ms for row in own]),
            (backend, style, [row.latency_ms for row in own]),
        ):
            marks = tuple(
                _mark(row, latency, label, x_axis, y_axis)
                for row, latency in zip(own, latencies, strict=True)
                if latency is not None
            )
            if marks:
                series.append(Series(label, style_, draw_path([(mark.x, mark.y) for mark in marks]), marks))
    return Plot(
        "Latency by length",
        f"Median time of one run with batch size {batch}, measured in turn with the eager model; the bars hold the "
        "median with 95% confidence. Lower is faster.",
        "time of one run",
        x_ticks,
        y_ticks,
        series,
        mark_chunk(report, x_axis),
    )


def _mark(row: Row, latency: Percentiles, label: str, x_axis: LogAxis, y_axis: LogAxis) -> Mark:
    title = f"{label}, length {row.seq_len}: {format_ms(latency.p50)} ({format_interval(latency)})"
    if latency is row.latency_ms and row.speedup is not None:
        title += f"; {format_factor(row.speedup)}x as fast as eager"
    spread = (y_axis.place(latency.p50_low), y_axis.place(latency.p50_high))
    return Mark(x_axis.place(row.seq_len or 1), y_axis.place(latency.p50), title, spread=spread)
