"""A comparison of bundles in a terminal: what each is worth, how long it takes, and which ones no other one beats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.terminal import make_table, make_text
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
    console.print(make_table([_FOLDED.get(heading, heading) for heading in headings], rows, align="ll"))
    console.print(make_text(f"{describe_text(trade)}."), soft_wrap=True)
    if timings := _list_timings(trade):
        headings = ["run", "bundle", "time", "95% interval", "ratio", "95% interval"]
        console.print()
        console.print(make_table(headings, timings, align="ll"))
        where = f"Batch of {trade.batch} on {trade.backend}, in turn"
        scale = f"{where}; ratio: how many times as long as {trade.reference.name}."
        console.print(make_text(scale), soft_wrap=True)
    for title, style, lines in (
        ("Not measured", "bold yellow", describe_gaps(trade)),
        ("No other bundle is at least as good in both and better in one", "bold", describe_fronts(trade)),
    ):
        for index, line in enumerate(lines):
            if not index:
                console.print(make_text((f"\n{title}", style)))
            console.print(make_text(f"  {line}"), soft_wrap=True)


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
