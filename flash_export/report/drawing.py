"""From a plot in its own units to a drawing: axes with ticks, lines and points in drawing units, labels that fit.

Positions are those of SVG: to the right and downwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flash_export.report.document import Axis, Plot, Point, Series

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 76, 18, 14, 46
_START, _END = LEFT + 8.0, WIDTH - RIGHT - 8.0
# What is smaller is drawn at the edge: 10.0**-324 is 0.
LOWEST_DECADE = -300
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_STUB = 8.0  # half the length of a line at a single value: the room beside the first
# Of the text beside a point; the width of a character is that of a wide one.
_LABEL_HEIGHT, _CHARACTER_WIDTH, _LABEL_GAP, _BASELINE = 12.0, 7.0, 6.0, 4.0
_POINT = 5.0
# A label stands above its point on the right, where no line through points that fall from left to right can cross it.
_RISE = 8.0
_MAX_LABEL_SHARE = 0.3

Place = Callable[[float], float]


@dataclass(frozen=True)
class Label:
    """Text and where it stands; ``anchor`` is ``start`` to the right of a point, ``end`` to the left."""

    x: float
    y: float
    text: str
    anchor: str = "start"


@dataclass(frozen=True)
class Mark:
    """A point; ``spread`` are the heights that a vertical bar through it ends at."""

    x: float
    y: float
    title: str
    kind: str
    spread: tuple[float, float] | None
    label: Label | None


@dataclass(frozen=True)
class Stroke:
    """A series: the path of its line, what is filled below it, and its marks."""

    label: str
    style: str
    swatch: str
    path: str
    area: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Tick:
    """A label and where it stands on its axis."""

    position: float
    label: str


@dataclass(frozen=True)
class Drawing:
    """Everything that is drawn."""

    title: str
    caption: str
    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    strokes: list[Stroke]
    marker: Label | None


def draw_plot(plot: Plot) -> Drawing:
    """Place everything of a plot."""
    points = [point for one in plot.series for point in one.points]
    lines = [pair for one in plot.series for pair in one.line]
    across = [x for x, _ in lines] + [point.x for point in points]
    bounds = (bound for point in points for bound in (point.y, *(point.spread or ())))
    up = [y for _, y in lines] + [bound for bound in bounds if bound is not None]
    place_x, x_ticks = _lay_out(
        plot.x, across, _START, _END, longest_label=max((len(p.label) for p in points), default=0)
    )
    place_y, y_ticks = _lay_out(plot.y, up, HEIGHT - BOTTOM, TOP)
    labels = place_labels(
        {point.label: (place_x(point.x), place_y(point.y)) for point in points if point.label and point.y is not None}
    )
    return Drawing(
        plot.title,
        plot.caption,
        plot.x.label,
        plot.y.label,
        x_ticks,
        y_ticks,
        [_draw_series(one, place_x, place_y, labels) for one in plot.series],
        _place_marker(plot, place_x),
    )


def place_labels(places: dict[str, tuple[float, float]]) -> dict[str, Label]:
    """Return where the label of each point is written; what would cover another label or point is moved up.

    Args:
        places: Position of each point by its label.
    """
    boxes = [(x - _POINT, x + _POINT, y) for x, y in places.values()]
    labels: dict[str, Label] = {}
    for name, (x, y) in sorted(places.items(), key=lambda item: -item[1][1]):
        width, height = _CHARACTER_WIDTH * len(name), y - _RISE
        is_left = x + _LABEL_GAP + width > WIDTH
        anchor, at = ("end", x - _LABEL_GAP) if is_left else ("start", x + _LABEL_GAP)
        left, right = (at - width, at) if is_left else (at, at + width)
        while any(
            left < end and start < right and abs(centre - height) < _LABEL_HEIGHT for start, end, centre in boxes
        ):
            height -= 1.0
        boxes.append((left, right, height))
        labels[name] = Label(round(at, 1), round(height + _BASELINE, 1), name, anchor)
    return labels


def lay_out_linear(low: float, high: float, start: float, end: float) -> tuple[Place, list[float]]:
    """Return what places values of a range that is widened to whole steps, and four to nine values for ticks."""
    span = high - low or abs(high) * 1e-3 or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if span / (factor * power) <= 6)
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    return _place_between(first * step, last * step, start, end), [index * step for index in range(first, last + 1)]


def lay_out_decades(values: Iterable[float], start: float, end: float) -> tuple[Place, dict[int, float]]:
    """Return what places values on a logarithmic axis of whole decades, and the places of its ticks by their exponents.

    What is not above 0 or not finite is placed at the edge.
    """
    positive = [value for value in values if 0 < value < math.inf] or [1.0]
    low = max(math.floor(math.log10(min(positive))), LOWEST_DECADE)
    high = max(math.ceil(math.log10(max(positive))), low + 1)
    place = _place_between(low, high, start, end)
    decades = {decade: place(decade) for decade in range(low, high + 1, -(-(high - low) // 7))}
    return (lambda value: place(math.log10(value) if value > 0 else low)), decades


def _lay_out(
    axis: Axis, values: list[float], start: float, end: float, longest_label: int = 0
) -> tuple[Place, list[Tick]]:
    if axis.ticks is not None:
        values = [*values, *(value for value, _ in axis.ticks)]  # a tick beyond the points widens the axis
        place = _place_between(min(values, default=0.0), max(values, default=1.0), start, end)
        return place, [Tick(place(value), label) for value, label in axis.ticks]
    if axis.scale == "decades":
        place, decades = lay_out_decades(values, start, end)
        name = _format_duration if axis.unit else _format_power
        return place, [Tick(position, name(decade)) for decade, position in decades.items()]
    if axis.scale == "lengths":
        low, high = min(values), max(*values, 2 * min(values))
        place_log = _place_between(math.log2(low), math.log2(high), start, end)
        powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
        return (lambda value: place_log(math.log2(value))), [
            Tick(place_log(power), _format_length(1 << power)) for power in powers[:: -(-len(powers) // 9)]
        ]
    if longest_label:  # from 0, and with room for a label beside the last point
        share = min(_CHARACTER_WIDTH * longest_label / (WIDTH - RIGHT - LEFT), _MAX_LABEL_SHARE)
        values = [0.0, max(values) / (1 - share)]
    values = [value for value in values if math.isfinite(value)] or [0.0]
    place, ticks = lay_out_linear(min(values), max(values), start, end)
    return place, [Tick(place(value), f"{value:g}") for value in ticks]


def _place_between(low: float, high: float, start: float, end: float) -> Place:
    """Return what maps ``low`` to ``start`` and ``high`` to ``end``; values outside are placed at the edge."""
    span = high - low or 1.0
    return lambda value: round(start + (min(max(value, low), high) - low) / span * (end - start), 1)


def _draw_series(series: Series, place_x: Place, place_y: Place, labels: dict[str, Label]) -> Stroke:
    line = [(place_x(x), place_y(y)) for x, y in series.line]
    if len(line) == 1 and not series.points:  # a line of one point is not seen
        ((x, y),) = line
        line = [(x - _STUB, y), (x + _STUB, y)]
    path = "M" + " L".join(f"{x} {y}" for x, y in line) if line else ""
    area = (
        f"{path} L{line[-1][0]} {HEIGHT - BOTTOM} L{line[0][0]} {HEIGHT - BOTTOM} Z"
        if path and series.is_filled
        else ""
    )
    marks = tuple(_place_point(point, place_x, place_y, labels) for point in series.points)
    return Stroke(series.label, series.style, series.swatch, path, area, marks)


def _place_point(point: Point, place_x: Place, place_y: Place, labels: dict[str, Label]) -> Mark:
    y = float(TOP) if point.y is None else place_y(point.y)
    spread = None if point.spread is None else (place_y(point.spread[0]), place_y(point.spread[1]))
    return Mark(place_x(point.x), y, point.title, point.kind, spread, labels.get(point.label))


def _place_marker(plot: Plot, place_x: Place) -> Label | None:
    if plot.marker is None:
        return None
    at, text = plot.marker
    x = place_x(at)
    return Label(x, TOP + 16, text, "start" if x < (LEFT + WIDTH - RIGHT) / 2 else "end")


def _format_length(length: int) -> str:
    """Shorten a power of two.

    >>> _format_length(512), _format_length(2048)
    ('512', '2k')
    """
    return f"{length >> 10}k" if length >= 1024 else str(length)


def _format_power(decade: int) -> str:
    return f"10{str(decade).translate(_SUPERSCRIPTS)}"


def _format_duration(decade: int) -> str:
    return f"{10.0 ** (decade - 3):g} s" if decade >= 3 else f"{10.0**decade:g} ms"
