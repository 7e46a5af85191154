"""A bisection in a terminal: the worst of each block, every quantity of the block at fault, and the finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from flash_export.validators.bisect.summary import describe_finding, format_times, group_by_block, pick_worst

if TYPE_CHECKING:
    from rich.console import Console

    from flash_export.validators.bisect.results import BisectReport, ProbeRow

_STYLES = {"clean": "green", "wrong": "bold red", "infinite": "bold red", "missing": "yellow"}


def print_bisection(report: BisectReport, console: Console) -> None:
    """Print the run that tells most and the finding."""
    run = report.shown_run
    blocks = group_by_block(run)
    if blocks:
        console.print(f"At {run}, {report.backend} against the {report.reference}:", highlight=False, soft_wrap=True)
        console.print(_build_table("worst quantity of the block", [pick_worst(rows) for rows in blocks]))
    if run.fault is not None and run.fault.block is not None:
        (rows,) = (rows for rows in blocks if run.fault in rows)
        console.print(f"\nBlock {run.fault.block}, in the order of computation:", highlight=False)
        console.print(_build_table("quantity", rows))
    style = "bold green" if report else "bold red"
    word = "CLEAN" if report else "FOUND"
    console.print()
    console.print(Text(word, style).append(f"  {describe_finding(report)}", "default"), soft_wrap=True)
    if run.fault is not None:
        console.print(f"In the graph it is the value {run.fault.tensor}", highlight=False, soft_wrap=True)


def _build_table(title: str, rows: list[ProbeRow]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for heading in ("block", title, "result"):
        table.add_column(heading, no_wrap=True)
    for heading in ("error", "noise", "of limit"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        block = row.block
        table.add_row(
            "" if block is None else str(block),
            row.label,
            Text(row.status, _STYLES[row.status]),
            _format_number(row.error),
            _format_number(row.noise),
            "" if row.ratio is None else format_times(row.ratio),
        )
    return table


def _format_number(number: float | None) -> str:
    return "" if number is None else f"{number:.1e}"
