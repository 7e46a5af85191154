"""The report of a profile of ranges: the worst quantities first, and what overflows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from flash_export.ranges.growth import FAR, FP16_MAX
from flash_export.report.document import Document, Note, Notes, Section, Styled, number, tabulate, text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flash_export.ranges.growth import Growth
    from flash_export.report.document import Style, Table
    from flash_export.validators.ranges.results import RangeRow, RangesReport

DEFAULT_ROWS = 20
_STYLES: dict[str, Style] = {"exceeded": "failed", "grows": "skipped", "no growth": "passed", "unknown": ""}
_HELD = {"always": "always", "island": "an island"}


def describe_ranges(report: RangesReport, max_rows: int | None = DEFAULT_ROWS) -> Document:
    """Return the report of a profile; a terminal shows the first rows, the ones with the least room."""
    first, last = report.seq_lens[0], report.seq_lens[-1]
    lengths = f"{last} {report.unit}" if first == last else f"{first} to {last} {report.unit}"
    verdicts = {row.growth.verdict for row in report.rows if not row.held}
    word = "OVERFLOWS" if "exceeded" in verdicts else "GROWS" if "grows" in verdicts else "HOLDS"
    return Document(
        subject=f"Ranges of {report.bundle}",
        command="flash-export profile-ranges",
        headline=describe_horizon(report),
        status={"OVERFLOWS": "failed", "GROWS": "skipped", "HOLDS": "passed"}[word],  # type: ignore[arg-type]
        word=word,
        lead=f"Measured on {report.data}, {lengths}; |x| is the largest magnitude, in the scale of the graph.",
        caveats=(f"Not measured: {report.stopped}",) if report.stopped else (),
        sections=(
            Section("Quantities with the least room", _tabulate(report, max_rows)),
            Section("Held in fp32", Notes(tuple(_list_held(report)))),
        ),
    )


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


def _list_held(report: RangesReport) -> Iterator[Note]:
    """Yield what an fp16 graph holds in fp32, where it cannot overflow."""
    for held, by in (("always", "every fp16 export"), ("island", "the islands of this bundle")):
        rows = sorted((row for row in report.rows if row.held == held), key=lambda row: -row.largest)
        if rows:
            labels = ", ".join(dict.fromkeys(row.label for row in rows))
            yield Note(f"{labels}, up to {rows[0].largest:.2g} in {rows[0].place}", who=f"by {by}")


def _tabulate(report: RangesReport, max_rows: int | None) -> Table:
    shown = dict.fromkeys((0, len(report.seq_lens) - 1))  # the shortest and the longest, or the only one
    return tabulate(
        report.rows,
        [
            (text("block"), lambda row: "" if row.block is None else str(row.block)),
            (text("quantity", is_prose=True), lambda row: row.label),
            *(
                (
                    number(f"{'' if index else '|x| '}at {report.seq_lens[index]}"),
                    lambda row, index=index: f"{row.points[index].graph_max_abs:.2g}",
                )
                for index in shown
            ),
            (number("room"), lambda row: None if row.held else f"{row.headroom:.2g}"),
            (number("power"), lambda row: None if row.growth.power is None else f"{row.growth.power:.2f}"),
            (
                text("fp16 overflows at", is_prose=True),
                lambda row: Styled(_format_horizon(row), _STYLES[row.growth.verdict]),
            ),
        ],
        max_rows=max_rows,
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
