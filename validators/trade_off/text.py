"""A comparison of bundles in words: the cells of its tables, and the sentences below them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.validators.report.formatting import (
    format_agreement,
    format_bytes,
    format_change,
    format_error,
    format_ms,
)
from flash_export.validators.trade_off.measures import find_front, list_costs, list_losses

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def describe_run(timing: Timing) -> str:
    """Name what was timed: ``512 tokens`` or ``decode step``."""
    return "decode step" if timing.seq_len is None else f"{timing.seq_len} tokens"


def tabulate_quality(trade: TradeOff) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of what each bundle is; bits per byte only where there is a text, memory if measured."""
    has_text = trade.reference_bits_per_byte is not None
    has_memory = any(entry.footprint is not None for entry in trade.entries)
    headings = ["bundle", "precision", "size", "ratio"]
    headings += ["bits per byte", "change"] if has_text else []
    headings += ["same top token", "KL (bits)"] + (["memory"] if has_memory else [])
    return headings, [_list_cells(entry, has_text=has_text, has_memory=has_memory) for entry in trade.entries]


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
    own = trade.reference_bits_per_byte
    model = "" if own is None else f"; the model itself in float64: {own:.4f} bits per byte"
    return f"{trade.predictions:,} predictions on {trade.text}{model}"


def _list_cells(entry: Entry, *, has_text: bool, has_memory: bool) -> list[str]:
    quality = entry.quality
    cells = [entry.name, entry.precision, format_bytes(entry.size_bytes), f"{entry.size_ratio:.2f}"]
    if has_text:
        bits = quality.bits_per_byte
        cells += [
            NONE if bits is None else f"{bits:.4f}",
            NONE if quality.change is None else format_change(quality.change),
        ]
    cells += [
        NONE if quality.top1_agreement is None else format_agreement(quality.top1_agreement),
        NONE if quality.kl_bits is None else format_error(quality.kl_bits),
    ]
    return [*cells, format_memory(entry)] if has_memory else cells
