"""A profile of ranges in a terminal: the worst quantities first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from flash_export.ranges.growth import FAR, FP16_MAX

if TYPE_CHECKING:
    from rich.console import Console

    from flash_export.ranges.growth import Growth
    from flash_export.validators.ranges.results import RangeRow, RangesReport

DEFAULT_ROWS = 20
_STYLES = {"exceeded": "bold red", "grows": "yellow", "no growth": "green", "unknown": "default"}


def print_ranges(report: RangesReport, console: Console, max_rows: int | None = DEFAULT_ROWS) -> None:
    """Print the worst rows, and in words what there is to say of the whole."""
    console.print(_build_table(report, report.rows[:max_rows]))
    if max_rows is not None and len(report.rows) > max_rows:
        console.print(f"and {len(report.rows) - max_rows} quantities with more room", highlight=False)
    lengths = f"{report.seq_lens[0]} to {report.seq_lens[-1]}"
    console.print(
        f"Measured on {report.data}, {lengths} tokens; |x| is the largest magnitude, in the scale of the graph.",
        highlight=False,
        soft_wrap=True,
    )
    if report.stopped:
        console.print(f"Not measured: {report.stopped}", highlight=False, soft_wrap=True)
    console.print(Text(describe_horizon(report), "bold"), soft_wrap=True)


def describe_horizon(report: RangesReport) -> str:
    """Say what overflows fp16 at the measured lengths, and what would do so first at longer ones."""
    exceeded = [row for row in report.rows if row.growth.verdict == "exceeded"]
    rest = [row for row in report.rows if row.growth.verdict != "exceeded"]
    sentences = []
    if exceeded:
        first = exceeded[0]
        more = f" and {len(exceeded) - 1} more" if len(exceeded) > 1 else ""
        sentences.append(
            f"fp16 overflows at measured lengths: {first.place} exceeds {FP16_MAX:.0f} at {first.growth.horizon:.0f} "
            f"tokens{more}."
        )
    if rest and rest[0].growth.horizon is not None:
        sentences.append(
            f"{'Next' if exceeded else 'First'} to overflow fp16: {rest[0].place}, at about "
            f"{format_tokens(rest[0].growth.horizon)} tokens ({_format_interval(rest[0].growth)}); the graph promises "
            f"lengths to {report.max_seq_len}."
        )
    elif rest:
        tightest = min(rest, key=lambda row: row.headroom)
        what = "Nothing else" if exceeded else "Nothing"
        sentences.append(
            f"{what} grows towards an overflow of fp16; the least room is {tightest.headroom:.2g}-fold, in "
            f"{tightest.place}."
        )
    return " ".join(sentences)


def format_tokens(length: float | None) -> str:
    """Format a horizon with two digits.

    >>> format_tokens(123456.0), format_tokens(4.56e7), format_tokens(900.0), format_tokens(None)
    ('120k', '46M', '900', 'beyond 1e9')
    """
    if length is None:
        return f"beyond {FAR:.0e}".replace("+0", "")
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if length >= unit:
            return f"{float(f'{length / unit:.2g}'):.0f}{name}" if length >= 10 * unit else f"{length / unit:.1f}{name}"
    return f"{length:.0f}"


def _build_table(report: RangesReport, rows: tuple[RangeRow, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    first, last = report.seq_lens[0], report.seq_lens[-1]
    table.add_column("block", no_wrap=True)
    table.add_column("quantity", overflow="fold")
    for heading in (f"|x| at {first}", f"at {last}", "room", "power"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("fp16 overflows at", justify="right", overflow="fold")
    for row in rows:
        table.add_row(
            "" if row.block is None else str(row.block),
            row.label,
            f"{row.points[0].graph_max_abs:.2g}",
            f"{row.points[-1].graph_max_abs:.2g}",
            f"{row.headroom:.2g}",
            "" if row.growth.power is None else f"{row.growth.power:.2f}",
            Text(_format_horizon(row.growth), _STYLES[row.growth.verdict]),
        )
    return table


def _format_horizon(growth: Growth) -> str:
    if growth.verdict == "exceeded":
        return f"{growth.horizon:.0f}, measured"
    if growth.verdict == "grows":
        interval = f" ({_format_interval(growth)})" if growth.horizon is not None else ""
        return f"{format_tokens(growth.horizon)}{interval}"
    return growth.verdict


def _format_interval(growth: Growth) -> str:
    early, late = growth.horizon_interval
    return f"{format_tokens(early)} to {format_tokens(late)}"
