"""The two plots of the HTML report, as plain geometry that the template draws in SVG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.validators.report.axes import (
    LogAxis,
    Tick,
    build_error_axis,
    build_latency_axis,
    build_length_axis,
)
from flash_export.validators.report.summary import compute_error_ratio, format_ms, format_shape, format_share

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flash_export.validators.results import Row, ValidationReport

_COLOURS = 4


@dataclass(frozen=True)
class Mark:
    """A point with what it says when hovered; ``kind`` is ``dot``, ``ring`` or ``cross``."""

    x: float
    y: float
    title: str
    kind: str = "dot"


@dataclass(frozen=True)
class Series:
    """A line and its marks; ``style`` is a CSS class."""

    label: str
    style: str
    path: str
    marks: tuple[Mark, ...] = ()
    swatch: str = "line"


@dataclass(frozen=True)
class Plot:
    """Everything that is drawn, in drawing units."""

    title: str
    caption: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    series: list[Series]
    marker: Tick | None
    x_label: str = "sequence length (tokens)"


def build_error_plot(report: ValidationReport) -> Plot | None:
    """Plot the largest error at each length against its tolerance; None when nothing was compared."""
    rows = [row for row in report.rows if row.max_abs_error is not None and row.tolerance]
    broken = [row for row in report.rows if row.status == "failed" and row.max_abs_error is None and row.seq_len]
    positive = [value for row in rows for value in (row.max_abs_error, row.tolerance) if value]
    if not positive:
        return None
    x_axis, x_ticks = build_length_axis([row.seq_len for row in rows + broken if row.seq_len])
    y_axis, y_ticks = build_error_axis(positive)

    series = [_build_tolerance(rows, x_axis, y_axis)]
    for index, (backend, own) in enumerate(_group_by_backend(rows)):
        for masked, kind in ((False, "dot"), (True, "ring")):
            worst = _pick_worst(row for row in own if row.masked == masked)
            if not worst:
                continue
            marks = tuple(
                Mark(
                    x_axis.place(row.seq_len or 1),
                    y_axis.place(row.max_abs_error or y_axis.low),
                    _describe_error(row),
                    "cross" if row.status == "failed" else kind,
                )
                for row in worst
            )
            label = f"{backend}, masked" if masked else backend
            path = "" if masked else _draw([(mark.x, mark.y) for mark in marks])
            series.append(Series(label, f"s{index % _COLOURS}", path, marks, swatch="ring" if masked else "line"))
    if broken:
        marks = tuple(
            Mark(
                x_axis.place(row.seq_len or 1), y_axis.end, f"{row.backend}, {format_shape(row)}: {row.reason}", "cross"
            )
            for row in broken
        )
        series.append(Series("failed without a number", "bad", "", marks, swatch="cross"))
    return Plot(
        "Error by length",
        "Largest difference between an exported model's output and the eager model's, over all batch sizes. Each point "
        "must lie below the dashed line.",
        "largest absolute error (logits)",
        x_ticks,
        y_ticks,
        series,
        _mark_chunk(report, x_axis),
    )


def build_latency_plot(report: ValidationReport) -> Plot | None:
    """Plot median latency by length for the smallest batch; None when no latency was measured."""
    timed = [row for row in report.rows if row.latency_ms and row.eager_latency_ms and row.batch]
    if not timed:
        return None
    batch = min(row.batch for row in timed if row.batch)
    rows = [row for row in timed if row.batch == batch]
    x_axis, x_ticks = build_length_axis([row.seq_len for row in rows if row.seq_len])
    values = [found.p50 for row in rows for found in (row.latency_ms, row.eager_latency_ms) if found]
    y_axis, y_ticks = build_latency_axis(values)

    groups = _group_by_backend(rows)
    series = []
    for index, (backend, own) in enumerate(groups):
        beside = "eager PyTorch" if len(groups) == 1 else f"eager beside {backend}"
        for label, style, eager in (
            (beside, f"eager s{index % _COLOURS}", True),
            (backend, f"s{index % _COLOURS}", False),
        ):
            marks = tuple(_mark_latency(row, x_axis, y_axis, label, eager=eager) for row in own)
            series.append(Series(label, style, _draw([(mark.x, mark.y) for mark in marks]), marks))
    return Plot(
        "Latency by length",
        f"Median time of one run with batch size {batch}, measured in turn with the eager model. Lower is faster.",
        "time of one run",
        x_ticks,
        y_ticks,
        series,
        _mark_chunk(report, x_axis),
    )


def _build_tolerance(rows: list[Row], x_axis: LogAxis, y_axis: LogAxis) -> Series:
    limits: dict[int, float] = {}
    for row in rows:
        length, limit = row.seq_len or 1, row.tolerance or y_axis.high
        limits[length] = min(limit, limits.get(length, limit))
    points = [(x_axis.place(length), y_axis.place(limit)) for length, limit in sorted(limits.items())]
    return Series("tolerance", "limit", _draw(points), swatch="dash")


def _mark_latency(row: Row, x_axis: LogAxis, y_axis: LogAxis, label: str, *, eager: bool) -> Mark:
    found = row.eager_latency_ms if eager else row.latency_ms
    assert found is not None  # the caller kept timed rows only
    spread = f"p90 {format_ms(found.p90)}, p99 {format_ms(found.p99)}"
    title = f"{label}, length {row.seq_len}: {format_ms(found.p50)} ({spread})"
    if not eager:
        title += f"; {row.speedup:.2f} times as fast as eager"
    return Mark(x_axis.place(row.seq_len or 1), y_axis.place(found.p50), title)


def _pick_worst(rows: Iterable[Row]) -> list[Row]:
    worst: dict[int, Row] = {}
    for row in rows:
        length = row.seq_len or 1
        if length not in worst or (compute_error_ratio(row) or 0) > (compute_error_ratio(worst[length]) or 0):
            worst[length] = row
    return [row for _, row in sorted(worst.items())]


def _describe_error(row: Row) -> str:
    share = f"{format_share(row)} {row.tolerance:.2e}"
    return f"{row.backend}, {format_shape(row)}: error {row.max_abs_error:.2e}, {share}"


def _group_by_backend(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    names = dict.fromkeys(row.backend for row in rows)
    return [(name, sorted((row for row in rows if row.backend == name), key=_get_length)) for name in names]


def _get_length(row: Row) -> int:
    return row.seq_len or 0


def _mark_chunk(report: ValidationReport, axis: LogAxis) -> Tick | None:
    chunk = report.environment.get("chunk_size")
    return (
        Tick(axis.place(chunk), f"chunk of {chunk}")
        if isinstance(chunk, int) and axis.low < chunk < axis.high
        else None
    )


def _draw(points: list[tuple[float, float]]) -> str:
    return "M" + " L".join(f"{x} {y}" for x, y in points)
