"""What is traded against what: the costs and the losses of a bundle, and which bundles no other one beats in both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from flash_export.validators.trade_off.results import Entry, Timing, TradeOff

_MIB = 1 << 20


@dataclass(frozen=True)
class Quantity:
    """A number of a bundle, to be plotted against another.

    Attributes:
        title: What it is, in a few words.
        unit: Its unit; empty where the title has it.
        pick: Take it from a bundle; None where it was not measured.
        is_logarithmic: Whether it spans powers of ten.
        is_better_high: Whether more of it is better.
    """

    title: str
    unit: str
    pick: Callable[[Entry], float | None]
    is_logarithmic: bool = False
    is_better_high: bool = False

    @property
    def label(self) -> str:
        """The title with the unit, for an axis."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def describe(self, entry: Entry) -> str:
        """Name it with its value: ``size of the graph 6.32 MiB``."""
        value = self.pick(entry)
        number = "not measured" if value is None else f"{value:.1e}" if self.is_logarithmic else f"{value:.5g}"
        return f"{self.title} {number} {self.unit}".rstrip()


SIZE = Quantity("size of the graph", "MiB", lambda entry: entry.size_bytes / _MIB)


def list_losses(trade: TradeOff) -> tuple[Quantity, ...]:
    """Return how much worse predictions become: the score where there is one, and what the task measures last."""
    last = trade.measures[-1]
    is_logarithmic = last.better == "lower" and last.unit != "share"  # decibels and shares span no powers of ten
    is_better_high = last.better == "higher"
    found = [
        Quantity(last.label, last.unit, lambda one: one.quality.measures.get(last.name), is_logarithmic, is_better_high)
    ]
    if trade.score is not None:
        found.insert(0, Quantity(trade.score.label, "", lambda entry: entry.quality.score))
    return _keep_measured(trade, found)


def list_costs(trade: TradeOff) -> tuple[Quantity, ...]:
    """Return what is paid: time at the longest length, time of a decode step, size; what was measured of it."""
    lengths = sorted({timing.seq_len for entry in trade.entries for timing in entry.timings if timing.seq_len})
    found = [
        Quantity(
            f"time of {length} {trade.unit}",
            "ms",
            lambda entry, length=length: _read_median(one for one in entry.timings if one.seq_len == length),  # type: ignore[misc]
        )
        for length in lengths[-1:]
    ]
    step = Quantity("time of a decode step", "ms", lambda entry: _read_median([entry.decode] if entry.decode else []))
    return _keep_measured(trade, [*found, step, SIZE])


def find_front(entries: Sequence[Entry], loss: Quantity, cost: Quantity) -> tuple[Entry, ...]:
    """Return the bundles that no other one beats: none is at least as good in both, and better in one.

    A bundle that lacks one of the two is not among them, and beats none.
    """
    sign = -1.0 if loss.is_better_high else 1.0
    points = [
        (entry, sign * own_loss, own_cost)
        for entry in entries
        if (own_loss := loss.pick(entry)) is not None and (own_cost := cost.pick(entry)) is not None
    ]
    return tuple(
        entry
        for entry, own_loss, own_cost in points
        if not any(
            other_loss <= own_loss and other_cost <= own_cost and (other_loss, other_cost) != (own_loss, own_cost)
            for _, other_loss, other_cost in points
        )
    )


def _keep_measured(trade: TradeOff, found: Iterable[Quantity]) -> tuple[Quantity, ...]:
    return tuple(one for one in found if any(one.pick(entry) is not None for entry in trade.entries))


def _read_median(timings: Iterable[Timing]) -> float | None:
    return next((one.latency_ms.p50 for one in timings if one.latency_ms is not None), None)
