"""A comparison of bundles in a terminal: what each is worth, how long it takes, and which ones no other one beats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from flash_export.validators.report.formatting import format_interval
from flash_export.validators.trade_off.text import (
    NONE,
    describe_fronts,
    describe_gaps,
    describe_run,
    describe_text,
    format_ratio,
    format_spread,
    format_time,
    tabulate_quality,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from flash_export.validators.trade_off.results import TradeOff


# Numbers are narrower than these, and a terminal of 80 columns should do.
_FOLDED = {
    "bits per byte": "bits per\nbyte",
    "same top token": "same top\ntoken",
    "divergence (bits)": "divergence\n(bits)",
}


def print_trade_off(trade: TradeOff, console: Console) -> None:
    """Print the tables and what is to be said about them."""
    headings, rows = tabulate_quality(trade)
    console.print(_build_table(headings, rows, left=2))
    console.print(f"{describe_text(trade)}.", highlight=False, soft_wrap=True)
    if timings := _list_timings(trade):
        console.print()
        console.print(_build_table(("run", "bundle", "time", "95% interval", "ratio", "95% interval"), timings, left=2))
        console.print(
            f"Batch of {trade.batch}, in turn; ratio: how many times as long as {trade.reference.name}.",
            highlight=False,
            soft_wrap=True,
        )
    if gaps := list(describe_gaps(trade)):
        console.print("\nNot measured", style="bold yellow")
        for gap in gaps:
            console.print(f"  {gap}", highlight=False, markup=False, soft_wrap=True)
    if fronts := list(describe_fronts(trade)):
        console.print("\nNo other bundle is at least as good in both and better in one", style="bold")
        for front in fronts:
            console.print(f"  {front}", highlight=False, markup=False, soft_wrap=True)


def _list_timings(trade: TradeOff) -> list[list[str]]:
    """Return a row for each run of each bundle, those of one run together."""
    rows = []
    for column in zip(*(entry.all_timings for entry in trade.entries), strict=True):
        for index, (entry, timing) in enumerate(zip(trade.entries, column, strict=True)):
            interval = NONE if timing.latency_ms is None else format_interval(timing.latency_ms)
            rows.append(
                [
                    "" if index else describe_run(timing, trade.unit),
                    entry.name,
                    format_time(timing),
                    interval,
                    format_ratio(timing.ratio),
                    format_spread(timing.ratio),
                ]
            )
    return rows


def _build_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for index, heading in enumerate(headings):
        table.add_column(_FOLDED.get(heading, heading), justify="left" if index < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
