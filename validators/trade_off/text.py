"""A comparison of bundles in words: the cells of its tables, and the sentences below them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.validators.report.formatting import format_bytes, format_change, format_measure, format_ms
from flash_export.validators.trade_off.measures import find_front, list_costs, list_losses

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flash_export.tasks.base import Measure
    from flash_export.validators.latency import Ratio
    from flash_export.validators.trade_off.results import Entry, Timing, TradeOff

NONE = "-"


def format_ratio(ratio: Ratio | None) -> str:
    """Format how many times as long.

    >>> from flash_export.validators.latency import Ratio
    >>> format_ratio(Ratio(0.583, 0.55, 0.61)), format_ratio(None)
    ('0.58', '-')
    """
    return NONE if ratio is None else f"{ratio.median:.2f}"


def format_spread(ratio: Ratio | None) -> str:
    """Format the interval that holds it with 95 % confidence."""
    return NONE if ratio is None else f"{ratio.low:.2f} to {ratio.high:.2f}"


def format_time(timing: Timing | None) -> str:
    """Format the median of a run, or a dash where there is none."""
    return NONE if timing is None or timing.latency_ms is None else format_ms(timing.latency_ms.p50)


def format_timing(timing: Timing | None) -> str:
    """Format the median of a run with its ratio: ``91.3 ms (0.58)``."""
    return (
        NONE if timing is None or timing.latency_ms is None else f"{format_time(timing)} ({format_ratio(timing.ratio)})"
    )


def format_memory(entry: Entry) -> str:
    """Format what the session and its longest run take: ``29 MiB``."""
    footprint = entry.footprint
    if footprint is None or footprint.session_bytes is None or footprint.peak_bytes is None:
        return NONE
    return format_bytes(footprint.session_bytes + footprint.peak_bytes)


def describe_run(timing: Timing, unit: str) -> str:
    """Name what was timed: ``512 tokens`` or ``decode step``."""
    return "decode step" if timing.seq_len is None else f"{timing.seq_len} {unit}"


def tabulate_quality(trade: TradeOff) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of what each bundle is; a score only where there is one, memory if measured."""
    has_memory = any(entry.footprint is not None for entry in trade.entries)
    headings = ["bundle", "precision", "size", "ratio"]
    headings += [trade.score.label, "change"] if trade.score is not None else []
    headings += [name_column(measure) for measure in trade.measures] + (["memory"] if has_memory else [])
    return headings, [_list_cells(trade, entry, has_memory=has_memory) for entry in trade.entries]


def name_column(measure: Measure) -> str:
    """Name a column: the label, and the unit where the cells have none."""
    return measure.label if measure.unit == "share" else f"{measure.label} ({measure.unit.partition(' ')[0]})"


def describe_fronts(trade: TradeOff) -> Iterator[str]:
    """Yield for each cost which bundles no other one beats in it and in bits per byte, or without it in divergence."""
    for loss in list_losses(trade)[:1]:
        for cost in list_costs(trade):
            names = [entry.name for entry in find_front(trade.entries, loss, cost)]
            yield f"{loss.title}, {cost.title}: {', '.join(names)}"


def describe_gaps(trade: TradeOff) -> Iterator[str]:
    """Yield what is missing of each bundle, and why."""
    for entry in trade.entries:
        yield from (f"{entry.name}: {reason}" for reason in entry.reasons)


def describe_text(trade: TradeOff) -> str:
    """Say what the bundles read, and how good the model itself is at it."""
    own, model = trade.reference_score, ""
    if own is not None and trade.score is not None:
        model = f"; the model itself in float64: {own:.4f} {trade.score.label}"
    return f"{trade.predictions:,} predictions on {trade.data}{model}"


def _list_cells(trade: TradeOff, entry: Entry, *, has_memory: bool) -> list[str]:
    quality = entry.quality
    cells = [entry.name, entry.precision, format_bytes(entry.size_bytes), f"{entry.size_ratio:.2f}"]
    if trade.score is not None:
        cells += [
            NONE if quality.score is None else f"{quality.score:.4f}",
            NONE if quality.change is None else format_change(quality.change),
        ]
    for measure in trade.measures:
        value = quality.measures.get(measure.name)
        cells.append(NONE if value is None else format_measure(measure, value))
    return [*cells, format_memory(entry)] if has_memory else cells
