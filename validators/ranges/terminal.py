"""A profile of ranges in a terminal: the worst quantities first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from flash_export.ranges.growth import FAR, FP16_MAX
from flash_export.terminal import make_table, make_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from flash_export.ranges.growth import Growth
    from flash_export.validators.ranges.results import RangeRow, RangesReport

DEFAULT_ROWS = 20
_STYLES = {"exceeded": "bold red", "grows": "yellow", "no growth": "green", "unknown": "default"}
_HELD = {"always": "always", "island": "an island"}


def print_ranges(report: RangesReport, console: Console, max_rows: int | None = DEFAULT_ROWS) -> None:
    """Print the worst rows, and in words what there is to say of the whole."""
    console.print(_build_table(report, report.rows[:max_rows]))
    if max_rows is not None and len(report.rows) > max_rows:
        console.print(make_text(f"and {len(report.rows) - max_rows} quantities with more room"))
    first, last = report.seq_lens[0], report.seq_lens[-1]
    lengths = f"{last} {report.unit}" if first == last else f"{first} to {last} {report.unit}"
    lines = [f"Measured on {report.data}, {lengths}; |x| is the largest magnitude, in the scale of the graph."]
    lines += [f"Not measured: {report.stopped}"] if report.stopped else []
    for line in (*lines, *describe_held(report)):
        console.print(make_text(line), soft_wrap=True)
    console.print(make_text((describe_horizon(report), "bold")), soft_wrap=True)


def describe_held(report: RangesReport) -> list[str]:
    """Say what an fp16 graph holds in fp32, where it cannot overflow."""
    lines = []
    for held, by in (("always", "every fp16 export"), ("island", "the islands of this bundle")):
        rows = sorted((row for row in report.rows if row.held == held), key=lambda row: -row.largest)
        if rows:
            labels = ", ".join(dict.fromkeys(row.label for row in rows))
            lines.append(
                f"Held in fp32 by {by}, so that it does not overflow: {labels}, up to {rows[0].largest:.2g} in "
                f"{rows[0].place}."
            )
    return lines


def describe_horizon(report: RangesReport) -> str:
    """Say what overflows fp16 at the measured lengths, and what would do so first at longer ones."""
    rows = [row for row in report.rows if not row.held]
    exceeded = [row for row in rows if row.growth.verdict == "exceeded"]
    rest = [row for row in rows if row.growth.verdict != "exceeded"]
    sentences = []
    if exceeded:
        first = exceeded[0]
        more = f" and {len(exceeded) - 1} more" if len(exceeded) > 1 else ""
        sentences.append(
            f"fp16 overflows at measured lengths: {first.place} exceeds {FP16_MAX:.0f} at {first.growth.horizon:.0f} "
            f"{report.unit}{more}."
        )
    if rest and rest[0].growth.horizon is not None:
        horizon = f"{format_horizon(rest[0].growth.horizon)} {report.unit} ({_format_interval(rest[0].growth)})"
        sentences.append(
            f"{'Next' if exceeded else 'First'} to overflow fp16: {rest[0].place}, at about {horizon}; the graph "
            f"promises lengths to {report.max_seq_len}."
        )
    elif rest:
        tightest = min(rest, key=lambda row: row.headroom)
        what = "Nothing else" if exceeded else "Nothing"
        sentences.append(
            f"{what} grows towards an overflow of fp16; the least room is {tightest.headroom:.2g}-fold, in "
            f"{tightest.place}."
        )
    if report.precision != "fp16" and any((row.growth.horizon or math.inf) <= report.max_seq_len for row in rows):
        sentences.append(
            "An export with --precision fp16 holds in fp32 what would overflow within its --max-seq-len (--islands "
            "auto, the default)."
        )
    return " ".join(sentences)


def format_horizon(length: float | None) -> str:
    """Format a horizon with two digits.

    >>> format_horizon(123456.0), format_horizon(4.56e7), format_horizon(900.0), format_horizon(None)
    ('120k', '46M', '900', 'beyond 1e9')
    """
    if length is None:
        return f"beyond {FAR:.0e}".replace("+0", "")
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if length >= unit:
            return f"{float(f'{length / unit:.2g}'):.0f}{name}" if length >= 10 * unit else f"{length / unit:.1f}{name}"
    return f"{length:.0f}"


def _build_table(report: RangesReport, rows: tuple[RangeRow, ...]) -> Table:
    shown = dict.fromkeys((0, len(report.seq_lens) - 1))  # the shortest and the longest, or the only one
    lengths = [f"at {report.seq_lens[index]}" for index in shown]
    return make_table(
        ["block", "quantity", f"|x| {lengths[0]}", *lengths[1:], "room", "power", "fp16 overflows at"],
        [
            [
                "" if row.block is None else str(row.block),
                row.label,
                *(f"{row.points[index].graph_max_abs:.2g}" for index in shown),
                "" if row.held else f"{row.headroom:.2g}",
                "" if row.growth.power is None else f"{row.growth.power:.2f}",
                make_text((_format_horizon(row), _STYLES[row.growth.verdict])),
            ]
            for row in rows
        ],
        align="ll",
        folded=(1, len(shown) + 4),
    )


def _format_horizon(row: RangeRow) -> str:
    growth = row.growth
    if row.held and growth.verdict != "exceeded":
        return f"held in fp32, {_HELD[row.held]}"
    if growth.verdict == "exceeded":
        return f"{growth.horizon:.0f}, measured"
    if growth.verdict == "grows":
        interval = f" ({_format_interval(growth)})" if growth.horizon is not None else ""
        return f"{format_horizon(growth.horizon)}{interval}"
    return growth.verdict


def _format_interval(growth: Growth) -> str:
    early, late = growth.horizon_interval
    return f"{format_horizon(early)} to {format_horizon(late)}"
