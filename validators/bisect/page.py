"""The report of a bisection: what is wrong first, the worst of each block, and every quantity in order."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from flash_export.formatting import capitalize, format_error, format_known
from flash_export.report.document import (
    Axis,
    Check,
    Document,
    Explanations,
    Plot,
    Plots,
    Point,
    Section,
    Series,
    Styled,
    number,
    tabulate,
    text,
)
from flash_export.validators.bisect.summary import describe_finding, format_times, group_by_block, pick_worst

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from flash_export.report.document import Table
    from flash_export.validators.bisect.results import BisectReport, ProbeRow, Run

_STYLES: dict[str, Literal["passed", "failed", "skipped"]] = {
    "clean": "passed",
    "wrong": "failed",
    "infinite": "failed",
    "missing": "skipped",
}
_MAX_TICKS = 16


def describe_bisection(report: BisectReport) -> Document:
    """Return the report of a bisection."""
    run, fault = report.shown_run, report.shown_run.fault
    headline = "Every quantity is within its limit."
    if fault is not None:
        headline = f"{capitalize(fault.title)} is wrong first."
    elif run.failure:
        headline = "The graph does not run."
    return Document(
        subject=f"Bisection of {report.bundle} at {run}, {report.backend} against the {report.reference}",
        command="flash-export bisect",
        headline=headline,
        status="passed" if report else "failed",
        word="CLEAN" if report else "FOUND",
        counts=describe_finding(report),
        alarms=() if fault is None else (f"In the graph it is the value {fault.tensor}.",),
        sections=tuple(_list_sections(run)),
        checks=tuple(_make_check(one, row) for one in report.runs for row in one.rows),
    )


def build_depth_plot(run: Run) -> Plot | None:
    """Plot the error of each quantity in the order of computation; None when no number is above 0."""
    places = {row.name: float(index) for index, row in enumerate(run.rows)}

    def draw(pick: Callable[[ProbeRow], float | None]) -> tuple[tuple[float, float], ...]:
        return tuple((places[row.name], value) for row in run.rows if (value := pick(row)))

    series = [
        Series("limit", "limit", draw(lambda row: row.limit), swatch="dash"),
        Series("eager model", "eager", draw(lambda row: row.noise), swatch="dash"),
        Series("graph", "s0", draw(lambda row: row.error), tuple(_list_points(run, places))),
    ]
    if not any(one.line for one in series):
        return None
    fault = run.fault
    return Plot(
        "Error by depth",
        "Largest difference of each quantity from the reference, as a fraction of its largest magnitude, in the order "
        "of computation.",
        Axis("block", "linear", ticks=_list_block_ticks(run, places)),
        Axis("relative error", "decades"),
        tuple(one for one in series if one.line),
        None if fault is None else (places[fault.name], fault.title),
    )


def _list_points(run: Run, places: dict[str, float]) -> Iterator[Point]:
    for row in run.rows:
        if row.error is None and row.status != "infinite":
            continue
        size = "not finite" if row.error is None else f"error {row.error:.1e}"
        limit = "" if row.limit is None else f", limit {row.limit:.1e}"
        title = f"{row.title}: {size}{limit}{f' ({row.note})' if row.note else ''}"
        value = None if row.status == "infinite" else row.error
        yield Point(places[row.name], value, title, "dot" if row else "cross")


def _list_block_ticks(run: Run, places: dict[str, float]) -> tuple[tuple[float, str], ...]:
    """Return a tick where each block starts, or at as many of them as there is room for."""
    starts: dict[int, float] = {}
    for row in run.rows:
        if row.block is not None:
            starts.setdefault(row.block, places[row.name])
    every = math.ceil(len(starts) / _MAX_TICKS) or 1
    return tuple((place, str(block)) for block, place in starts.items() if block % every == 0)


def _list_sections(run: Run) -> Iterator[Section]:
    plot = build_depth_plot(run)
    yield Section("", Plots(() if plot is None else (plot,)), views=("page",))
    blocks = group_by_block(run)
    worst = _tabulate(run, [pick_worst(rows) for rows in blocks])
    yield Section("Worst quantity of each block", worst, views=("terminal", "markdown"))
    if run.fault is not None and run.fault.block is not None:
        (rows,) = (rows for rows in blocks if run.fault in rows)
        title = f"Block {run.fault.block}, in the order of computation"
        yield Section(title, _tabulate(run, rows), views=("terminal", "markdown"))
    yield Section(
        "Every quantity",
        _tabulate(run, run.rows),
        f"In the order of computation, at {run}. Errors are fractions of the largest magnitude of the reference.",
        views=("page",),
    )
    yield Section("How to read this", _explain(run), views=("page",))


def _tabulate(run: Run, rows: Sequence[ProbeRow]) -> Table:
    return tabulate(
        rows,
        [
            (text("block"), lambda row: "" if row.block is None else str(row.block)),
            (text("quantity"), lambda row: row.label),
            (text("result"), lambda row: Styled(row.status, _STYLES[row.status])),
            (number("error"), lambda row: format_known(format_error, row.error)),
            (number("noise", is_minor=True), lambda row: format_known(format_error, row.noise)),
            (number("limit", is_minor=True), lambda row: format_known(format_error, row.limit)),
            (number("of limit"), lambda row: format_known(format_times, row.ratio)),
        ],
        lambda row: row.note,
        is_marked=lambda row: row is run.fault,
    )


def _make_check(run: Run, row: ProbeRow) -> Check:
    reason = row.note or ("" if row.ratio is None else f"{format_times(row.ratio)} the limit")
    return Check(
        str(run), row.name, row.title, _STYLES[row.status], "" if row.status == "clean" else reason or row.status
    )


def _explain(run: Run) -> Explanations:
    limit = (
        "A share of the quantity's largest magnitude that the graph's precision is accepted to lose. Few bits make "
        "large errors everywhere, so that it finds mistakes and not rounding."
    )
    if any(row.noise is not None for row in run.rows):
        limit = (
            "What rounding explains: a multiple of how far the eager model in the graph's precision is from itself in "
            "fp64, at the same quantity, which is the noise."
        )
    return Explanations(
        (
            (
                "What is compared",
                "The same random inputs go through the reference and through the exported graph, and both are read at "
                "every quantity that they share. What the graph holds in another order or scale is brought into the "
                "model's terms.",
            ),
            ("Limit", limit),
            (
                "The first one",
                "Whatever is computed from a wrong quantity is wrong too. The fault lies where the first one is "
                "computed, from what is right.",
            ),
        )
    )
