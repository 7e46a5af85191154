"""What is traded against what: the costs and the losses of a bundle, and which bundles no other one beats in both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flash_export.validators.trade_off.results import Entry, TradeOff


_MIB = 1 << 20


@dataclass(frozen=True)
class Measure:
    """A number of a bundle of which less is better.

    Attributes:
        title: What it is, in a few words.
        unit: Its unit; empty where the title has it.
        pick: Take it from a bundle; None where it was not measured.
        is_logarithmic: Whether it spans powers of ten.
    """

    title: str
    unit: str
    pick: Callable[[Entry], float | None]
    is_logarithmic: bool = False

    @property
    def label(self) -> str:
        """The title with the unit, for an axis."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def describe(self, entry: Entry) -> str:
        """Name it with its value: ``size of the graph 6.32 MiB``."""
        value = self.pick(entry)
        number = "not measured" if value is None else f"{value:.1e}" if self.is_logarithmic else f"{value:.5g}"
        return f"{self.title} {number} {self.unit}".rstrip()


BITS_PER_BYTE = Measure("bits per byte", "", lambda entry: entry.quality.bits_per_byte)
DIVERGENCE = Measure("KL divergence", "bits", lambda entry: entry.quality.kl_bits, is_logarithmic=True)
SIZE = Measure("size of the graph", "MiB", lambda entry: entry.size_bytes / _MIB)


def list_losses(trade: TradeOff) -> tuple[Measure, ...]:
    """Return how much worse predictions become: bits per byte where there is a text, and the divergence."""
    found = (BITS_PER_BYTE, DIVERGENCE) if trade.reference_bits_per_byte is not None else (DIVERGENCE,)
    return tuple(measure for measure in found if any(measure.pick(entry) is not None for entry in trade.entries))


def list_costs(trade: TradeOff) -> tuple[Measure, ...]:
    """Return what is paid: time at the longest length, time of a decode step, size; what was measured of it."""
    lengths = sorted({timing.seq_len for entry in trade.entries for timing in entry.timings if timing.seq_len})
    times = [Measure(f"time of {length} tokens", "ms", _pick_latency(length)) for length in lengths[-1:]]
    decode = Measure("time of a decode step", "ms", _pick_decode)
    found = (*times, decode, SIZE)
    return tuple(measure for measure in found if any(measure.pick(entry) is not None for entry in trade.entries))


def find_front(entries: Sequence[Entry], loss: Measure, cost: Measure) -> tuple[Entry, ...]:
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


def _place(entry: Entry, loss: Measure, cost: Measure) -> list[tuple[float, float]]:
    """Return the one point of a bundle; none if it lacks a coordinate."""
    own_loss, own_cost = loss.pick(entry), cost.pick(entry)
    return [] if own_loss is None or own_cost is None else [(own_loss, own_cost)]


def _pick_latency(seq_len: int) -> Callable[[Entry], float | None]:
    def pick(entry: Entry) -> float | None:
        found = (timing.latency_ms for timing in entry.timings if timing.seq_len == seq_len)
        return next((latency.p50 for latency in found if latency is not None), None)

    return pick


def _pick_decode(entry: Entry) -> float | None:
    return entry.decode.latency_ms.p50 if entry.decode is not None and entry.decode.latency_ms is not None else None
