"""Axes of the reports' plots: from values to positions in the drawing, and their ticks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 76, 18, 14, 46
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


# What is smaller is drawn at the edge: 10.0**-324 is 0.
LOWEST_DECADE = -300


@dataclass(frozen=True)
class Tick:
    """A label and where it stands."""

    position: float
    label: str


@dataclass(frozen=True)
class LogAxis:
    """Maps ``low`` to ``start`` and ``high`` to ``end``, logarithmically; values outside are drawn at the edge."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Return the position of a value."""
        inside = min(max(value, self.low), self.high)
        share = math.log(inside / self.low) / math.log(self.high / self.low)
        return round(self.start + share * (self.end - self.start), 1)


@dataclass(frozen=True)
class LinearAxis:
    """Maps ``low`` to ``start`` and ``high`` to ``end``; values outside are drawn at the edge."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Return the position of a value."""
        inside = min(max(value, self.low), self.high)
        return round(self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start), 1)


def build_linear_axis(
    low: float, high: float, start: float, end: float, format_value: Callable[[float], str]
) -> tuple[LinearAxis, list[Tick]]:
    """Return an axis over a range that is widened to whole steps, with four to nine ticks.

    Args:
        low: Smallest value.
        high: Largest value; the same as ``low`` if there is one alone.
        start: Where the smallest is drawn.
        end: Where the largest is drawn.
        format_value: Writes the value of a tick.
    """
    span = high - low or abs(high) * 1e-3 or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if span / (factor * power) <= 6)
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    axis = LinearAxis(first * step, last * step, start, end)
    return axis, [Tick(axis.place(index * step), format_value(index * step)) for index in range(first, last + 1)]


def build_length_axis(lengths: list[int]) -> tuple[LogAxis, list[Tick]]:
    """Return the axis of sequence lengths, with at most nine ticks at powers of two."""
    low, high = min(lengths), max(max(lengths), 2 * min(lengths))
    axis = LogAxis(low, high, LEFT + 8, WIDTH - RIGHT - 8)
    powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    step = -(-len(powers) // 9)
    return axis, [Tick(axis.place(1 << power), format_length(1 << power)) for power in powers[::step]]


def build_error_axis(values: list[float]) -> tuple[LogAxis, list[Tick]]:
    """Return the axis of errors, in whole decades."""
    axis, decades = _build_decades(values)
    return axis, [Tick(axis.place(10.0**decade), _format_power(decade)) for decade in decades]


def build_latency_axis(values: list[float]) -> tuple[LogAxis, list[Tick]]:
    """Return the axis of latencies in milliseconds, in whole decades."""
    axis, decades = _build_decades(values)
    return axis, [Tick(axis.place(10.0**decade), _format_duration(decade)) for decade in decades]


def format_length(length: int) -> str:
    """Shorten a power of two.

    >>> format_length(512), format_length(2048)
    ('512', '2k')
    """
    return f"{length >> 10}k" if length >= 1024 else str(length)


def _build_decades(values: list[float]) -> tuple[LogAxis, range]:
    low = max(math.floor(math.log10(min(values))), LOWEST_DECADE)
    high = max(math.ceil(math.log10(max(values))), low + 1)
    step = -(-(high - low) // 7)
    return LogAxis(10.0**low, 10.0**high, HEIGHT - BOTTOM, TOP), range(low, high + 1, step)


def _format_power(decade: int) -> str:
    return f"10{str(decade).translate(_SUPERSCRIPTS)}"


def _format_duration(decade: int) -> str:
    return f"{10 ** (decade - 3)} s" if decade >= 3 else f"{10.0**decade:g} ms"
