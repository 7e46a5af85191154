"""A comparison of bundles as one Markdown table, a row a bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.validators.report.markdown import build_table, escape
from flash_export.validators.trade_off.text import (
    describe_fronts,
    describe_gaps,
    describe_run,
    describe_text,
    format_timing,
    tabulate_quality,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flash_export.validators.trade_off.results import TradeOff


def render_trade_off_markdown(trade: TradeOff) -> str:
    """Return the table, what is missing from it, and which bundles no other one beats."""
    return "\n".join(_list_lines(trade)) + "\n"


def _list_lines(trade: TradeOff) -> Iterator[str]:
    headings, rows = tabulate_quality(trade)
    runs = [describe_run(timing, trade.unit) for timing in trade.reference.all_timings]
    yield from build_table(
        [*headings, *runs],
        [
            [*map(escape, row), *map(format_timing, entry.all_timings)]
            for row, entry in zip(rows, trade.entries, strict=True)
        ],
    )
    yield ""
    yield f"{describe_text(trade)}."
    if runs:
        yield f"Times are medians of one run, batch of {trade.batch} on {trade.backend}, in turn; in brackets, how many"
        yield f"times as long as {escape(trade.reference.name)}."
    for gap in describe_gaps(trade):
        yield from ("", f"Not measured: {escape(gap)}")
    for index, front in enumerate(describe_fronts(trade)):
        yield from (("", "No other bundle is at least as good in both and better in one:", "") if not index else ())
        yield f"- {escape(front)}"
