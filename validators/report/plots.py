"""The two plots of the HTML report, as plain geometry that the template draws in SVG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.validators.report.axes import LogAxis, Tick, build_error_axis, build_length_axis
from flash_export.validators.report.formatting import format_factor, format_percent, format_shape
from flash_export.validators.report.measures import (
    compute_error_ratio,
    compute_noise_multiple,
    compute_relative_limit,
    has_noise,
    select_comparisons,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from flash_export.validators.results import Row, ValidationReport

COLOURS = 6
_STUB = 8.0  # half the length of a line at a single length: the room beside the first


@dataclass(frozen=True)
class Label:
    """Text beside a point; ``anchor`` is ``start`` to the right of it, ``end`` to the left."""

    x: float
    y: float
    text: str
    anchor: str = "start"


@dataclass(frozen=True)
class Mark:
    """A point with what it says when hovered; ``kind`` is ``dot``, ``ring`` or ``cross``.

    ``spread`` are the heights that a vertical bar through it ends at, ``label`` what is always to be read.
    """

    x: float
    y: float
    title: str
    kind: str = "dot"
    spread: tuple[float, float] | None = None
    label: Label | None = None


@dataclass(frozen=True)
class Series:
    """A line and its marks; ``style`` is a CSS class, ``area`` what is filled below a line."""

    label: str
    style: str
    path: str = ""
    marks: tuple[Mark, ...] = ()
    swatch: str = "line"
    area: str = ""


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
    x_label: str = "length"


def build_error_plot(report: ValidationReport) -> Plot | None:
    """Plot the largest error at each length between its limit and the eager model's own error.

    Returns:
        The plot; None when nothing was compared.
    """
    comparisons = select_comparisons(report)
    rows = [row for row in comparisons if row.max_rel_error is not None and row.tolerance]
    broken = [row for row in comparisons if row.status == "failed" and row.max_rel_error is None and row.seq_len]
    found = [(row.max_rel_error, row.noise, compute_relative_limit(row)) for row in rows]
    positive = [value for values in found for value in values if value]
    if not positive:
        return None
    x_axis, x_ticks = build_length_axis([row.seq_len for row in rows + broken if row.seq_len])
    y_axis, y_ticks = build_error_axis(positive)

    series = [
        *_build_noise(rows, x_axis, y_axis),
        Series("limit", "limit", draw_path(_place(rows, compute_relative_limit, x_axis, y_axis)), swatch="dash"),
    ]
    for index, (backend, own) in enumerate(group_by_backend(rows)):
        for masked, kind in ((False, "dot"), (True, "ring")):
            marks = tuple(
                Mark(
                    x_axis.place(row.seq_len or 1),
                    y_axis.place(row.max_rel_error or y_axis.low),
                    _describe_error(row),
                    "cross" if row.status == "failed" else kind,
                )
                for row in _pick_worst(row for row in own if row.masked == masked)
            )
            if marks:
                label, style = f"{backend}, masked" if masked else backend, f"s{index % COLOURS}"
                path = "" if masked else draw_path([(mark.x, mark.y) for mark in marks])
                series.append(Series(label, style, path, marks, swatch="ring" if masked else "line"))
    if broken:
        marks = tuple(
            Mark(
                x_axis.place(row.seq_len or 1), y_axis.end, f"{row.backend}, {format_shape(row)}: {row.reason}", "cross"
            )
            for row in broken
        )
        series.append(Series("failed without a number", "bad", marks=marks, swatch="cross"))
    floor = "Below the grey edge is what PyTorch itself is off by in this precision. " if has_noise(rows) else ""
    return Plot(
        "Error by length",
        f"Largest difference from exact arithmetic, over all batch sizes. {floor}The dashed line is the limit, and a "
        "cross a check that failed.",
        "largest error / largest output",
        x_ticks,
        y_ticks,
        series,
        mark_chunk(report, x_axis),
    )


def group_by_backend(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Return the rows of each backend, shortest first."""
    names = dict.fromkeys(row.backend for row in rows)
    return [(name, sorted((row for row in rows if row.backend == name), key=_get_length)) for name in names]


def mark_chunk(report: ValidationReport, axis: LogAxis) -> Tick | None:
    """Return where the model's chunk is on an axis of lengths; None outside of it."""
    chunk = report.environment.get("chunk_size")
    return (
        Tick(axis.place(chunk), f"chunk of {chunk}")
        if isinstance(chunk, int) and axis.low < chunk < axis.high
        else None
    )


def draw_path(points: Sequence[tuple[float, float]]) -> str:
    """Return the SVG path through points; an empty one for no points."""
    return "M" + " L".join(f"{x} {y}" for x, y in points) if points else ""


def _build_noise(rows: list[Row], x_axis: LogAxis, y_axis: LogAxis) -> list[Series]:
    points = _place(rows, lambda row: row.noise, x_axis, y_axis)
    if not points:
        return []
    (left, _), (right, _), bottom = points[0], points[-1], y_axis.start
    area = f"{draw_path(points)} L{right} {bottom} L{left} {bottom} Z"
    return [Series("PyTorch's own error", "noise", draw_path(points), swatch="area", area=area)]


def _place(
    rows: list[Row],
    measure: Callable[[Row], float | None],
    x_axis: LogAxis,
    y_axis: LogAxis,
) -> list[tuple[float, float]]:
    """Return a point a length: the largest value of its rows, where there is any above 0.

    The rows of a length differ in noise, and so in limit; below the largest limit is every row that passed.
    """
    values: dict[int, float] = {}
    for row in rows:
        if value := measure(row):
            length = row.seq_len or 1
            values[length] = max(value, values.get(length, value))
    points = [(x_axis.place(length), y_axis.place(value)) for length, value in sorted(values.items())]
    if len(points) == 1:  # a line of one point is not drawn
        ((x, y),) = points
        return [(x - _STUB, y), (x + _STUB, y)]
    return points


def _pick_worst(rows: Iterable[Row]) -> list[Row]:
    """Return a row a length: one that failed before any other, and then the nearest to its limit."""
    worst: dict[int, Row] = {}
    for row in sorted(rows, key=lambda row: (row.status == "failed", compute_error_ratio(row) or 0.0)):
        worst[row.seq_len or 1] = row
    return [row for _, row in sorted(worst.items())]


def _describe_error(row: Row) -> str:
    multiple = compute_noise_multiple(row)
    own = "" if multiple is None else f", {format_factor(multiple)}x the eager model's own"
    share = format_percent(compute_error_ratio(row) or 0.0)
    return f"{row.backend}, {format_shape(row)}: error {row.max_rel_error:.1e}{own}; {share} of the limit"


def _get_length(row: Row) -> int:
    return row.seq_len or 0
