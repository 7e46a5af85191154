"""A bisection in a terminal: the worst of each block, every quantity of the block at fault, and the finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.terminal import make_table, make_text
from flash_export.validators.bisect.summary import describe_finding, format_times, group_by_block, pick_worst

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from flash_export.validators.bisect.results import BisectReport, ProbeRow

_STYLES = {"clean": "green", "wrong": "bold red", "infinite": "bold red", "missing": "yellow"}


def print_bisection(report: BisectReport, console: Console) -> None:
    """Print the run that tells most and the finding."""
    run = report.shown_run
    blocks = group_by_block(run)
    if blocks:
        console.print(make_text(f"At {run}, {report.backend} against the {report.reference}:"), soft_wrap=True)
        console.print(_build_table("worst quantity of the block", [pick_worst(rows) for rows in blocks]))
    if run.fault is not None and run.fault.block is not None:
        (rows,) = (rows for rows in blocks if run.fault in rows)
        console.print(make_text(f"\nBlock {run.fault.block}, in the order of computation:"))
        console.print(_build_table("quantity", rows))
    word = ("CLEAN", "bold green") if report else ("FOUND", "bold red")
    console.print()
    console.print(make_text(word, f"  {describe_finding(report)}"), soft_wrap=True)
    if run.fault is not None:
        console.print(make_text(f"In the graph it is the value {run.fault.tensor}"), soft_wrap=True)


def _build_table(title: str, rows: list[ProbeRow]) -> Table:
    return make_table(
        ["block", title, "result", "error", "noise", "of limit"],
        [
            [
                "" if row.block is None else str(row.block),
                row.label,
                make_text((row.status, _STYLES[row.status])),
                _format_number(row.error),
                _format_number(row.noise),
                "" if row.ratio is None else format_times(row.ratio),
            ]
            for row in rows
        ],
        align="lll",
    )


def _format_number(number: float | None) -> str:
    return "" if number is None else f"{number:.1e}"
