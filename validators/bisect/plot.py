"""Error by depth: the plot of a bisection, as geometry that the report's template draws."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from flash_export.validators.report.axes import LEFT, RIGHT, TOP, WIDTH, Tick, build_error_axis
from flash_export.validators.report.plots import Mark, Plot, Series

if TYPE_CHECKING:
    from collections.abc import Callable

    from flash_export.validators.bisect.results import ProbeRow, Run

_MAX_TICKS = 16


def build_depth_plot(run: Run) -> Plot | None:
    """Plot the error of each quantity in the order of computation; None when no number is above 0."""
    rows = run.rows
    numbers = [number for row in rows for number in (row.error, row.noise, row.limit) if number]
    if not numbers:
        return None
    axis, y_ticks = build_error_axis(numbers)
    step = (WIDTH - RIGHT - LEFT - 16) / max(len(rows) - 1, 1)
    places = {row.name: round(LEFT + 8 + index * step, 1) for index, row in enumerate(rows)}

    def draw(pick: Callable[[ProbeRow], float | None]) -> str:
        points = [(places[row.name], axis.place(number)) for row in rows if (number := pick(row))]
        return "M" + " L".join(f"{x} {y}" for x, y in points) if points else ""

    marks = tuple(
        Mark(
            places[row.name],
            TOP if row.status == "infinite" else axis.place(row.error or axis.low),
            _describe(row),
            "cross" if not row else "dot",
        )
        for row in rows
        if row.error is not None or row.status == "infinite"
    )
    series = [
        Series("limit", "limit", draw(lambda row: row.limit), swatch="dash"),
        Series("eager model", "eager", draw(lambda row: row.noise), swatch="dash"),
        Series("graph", "s0", draw(lambda row: row.error), marks),
    ]
    fault = run.fault
    marker = None if fault is None else Tick(places[fault.name], fault.title)
    if marker is not None and marker.position > (LEFT + WIDTH) / 2:
        marker = Tick(marker.position, "")  # its label would leave the drawing; the heading has it
    return Plot(
        "Error by depth",
        "Largest difference of each quantity from the reference, as a fraction of its largest magnitude, in the order "
        "of computation.",
        "relative error",
        _build_block_ticks(run, places),
        y_ticks,
        [one for one in series if one.path],
        marker,
        "block",
    )


def _build_block_ticks(run: Run, places: dict[str, float]) -> list[Tick]:
    """Return a tick where each block starts, or at as many of them as there is room for."""
    starts: dict[int, float] = {}
    for row in run.rows:
        if row.block is not None:
            starts.setdefault(row.block, places[row.name])
    every = math.ceil(len(starts) / _MAX_TICKS) or 1
    return [Tick(place, str(block)) for block, place in starts.items() if block % every == 0]


def _describe(row: ProbeRow) -> str:
    size = "not finite" if row.error is None else f"error {row.error:.1e}"
    limit = "" if row.limit is None else f", limit {row.limit:.1e}"
    return f"{row.title}: {size}{limit}{f' ({row.note})' if row.note else ''}"
