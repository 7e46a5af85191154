"""What is traded against what: the costs and the losses of a bundle, and which bundles no other one beats in both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flash_export.tasks.base import Measure
    from flash_export.validators.trade_off.results import Entry, TradeOff


_MIB = 1 << 20


@dataclass(frozen=True)
class Coordinate:
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


SIZE = Coordinate("size of the graph", "MiB", lambda entry: entry.size_bytes / _MIB)


def list_losses(trade: TradeOff) -> tuple[Coordinate, ...]:
    """Return how much worse predictions become: the score where there is one, and what the task measures last."""
    measure = trade.measures[-1]
    found = [_make_coordinate(measure, lambda entry: entry.quality.measures.get(measure.name))]
    if trade.score is not None:
        found.insert(0, Coordinate(trade.score.label, "", lambda entry: entry.quality.score))
    return tuple(axis for axis in found if any(axis.pick(entry) is not None for entry in trade.entries))


def _make_coordinate(measure: Measure, pick: Callable[[Entry], float | None]) -> Coordinate:
    """Return an axis of a measure; decibels and shares span no powers of ten."""
    is_logarithmic = measure.better == "lower" and measure.unit != "share"
    return Coordinate(measure.label, measure.unit, pick, is_logarithmic, measure.better == "higher")


def list_costs(trade: TradeOff) -> tuple[Coordinate, ...]:
    """Return what is paid: time at the longest length, time of a decode step, size; what was measured of it."""
    lengths = sorted({timing.seq_len for entry in trade.entries for timing in entry.timings if timing.seq_len})
    times = [Coordinate(f"time of {length} {trade.unit}", "ms", _pick_latency(length)) for length in lengths[-1:]]
    decode = Coordinate("time of a decode step", "ms", _pick_decode)
    found = (*times, decode, SIZE)
    return tuple(axis for axis in found if any(axis.pick(entry) is not None for entry in trade.entries))


def find_front(entries: Sequence[Entry], loss: Coordinate, cost: Coordinate) -> tuple[Entry, ...]:
    """Return the bundles that no other one beats: none is at least as good in both, and better in one.

    A bundle that lacks one of the two is not among them, and beats none.
    """
    points = [(entry, own_loss, own_cost) for entry in entries for own_loss, own_cost in _place(entry, loss, cost)]
    return tuple(
        entry
        for entry, own_loss, own_cost in points
        if not any(
            other_loss <= own_loss and other_cost <= own_cost and (other_loss, other_cost) != (own_loss, own_cost)
            for _, other_loss, other_cost in points
        )
    )


def _place(entry: Entry, loss: Coordinate, cost: Coordinate) -> list[tuple[float, float]]:
    """Return the one point of a bundle; none if it lacks a coordinate."""
    own_loss, own_cost = loss.pick(entry), cost.pick(entry)
    if own_loss is None or own_cost is None:
        return []
    return [(-own_loss if loss.is_better_high else own_loss, own_cost)]


def _pick_latency(seq_len: int) -> Callable[[Entry], float | None]:
    def pick(entry: Entry) -> float | None:
        found = (timing.latency_ms for timing in entry.timings if timing.seq_len == seq_len)
        return next((latency.p50 for latency in found if latency is not None), None)

    return pick


def _pick_decode(entry: Entry) -> float | None:
    return entry.decode.latency_ms.p50 if entry.decode is not None and entry.decode.latency_ms is not None else None
