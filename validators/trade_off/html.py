"""A comparison of bundles as one HTML file that needs no network, no script and no second file."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from flash_export.validators.report.formatting import capitalize, format_interval
from flash_export.validators.report.html import make_environment
from flash_export.validators.trade_off.plot import build_trade_off_plots
from flash_export.validators.trade_off.text import (
    describe_gaps,
    describe_run,
    describe_text,
    format_ratio,
    format_spread,
    format_time,
    tabulate_quality,
)

if TYPE_CHECKING:
    from flash_export.validators.trade_off.results import TradeOff

TEMPLATE_FILE = "trade_off.html.jinja"


def render_trade_off(trade: TradeOff) -> str:
    """Return the text of the page."""
    environment = make_environment()
    environment.filters.update(
        capital=capitalize,
        interval=format_interval,
        ratio=format_ratio,
        run=partial(describe_run, unit=trade.unit),
        spread=format_spread,
        time=format_time,
    )
    headings, rows = tabulate_quality(trade)
    return environment.get_template(TEMPLATE_FILE).render(
        trade=trade,
        headings=headings,
        rows=rows,
        text=describe_text(trade),
        gaps=list(describe_gaps(trade)),
        plots=build_trade_off_plots(trade),
    )
