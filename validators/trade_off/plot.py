"""Loss against cost: the plots of a comparison, as geometry that the report's template draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.validators.report.axes import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    build_error_axis,
    build_linear_axis,
)
from flash_export.validators.report.plots import Label, Mark, Plot, Series, draw_path
from flash_export.validators.trade_off.measures import find_front, list_costs, list_losses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flash_export.validators.report.axes import LinearAxis, LogAxis, Tick
    from flash_export.validators.trade_off.measures import Coordinate
    from flash_export.validators.trade_off.results import Entry, TradeOff

    Axis = LinearAxis | LogAxis

# Of the text beside a point, in drawing units; the width of a character is that of a wide one.
_LABEL_HEIGHT, _CHARACTER_WIDTH, _LABEL_GAP, _BASELINE = 12.0, 7.0, 6.0, 4.0
_POINT = 5.0
# A name stands above its point on the right, where no line through points that fall from left to right can cross it.
_RISE = 8.0
_MAX_NAME_SHARE = 0.3


def build_trade_off_plots(trade: TradeOff) -> list[Plot]:
    """Return a plot for each loss and cost that at least one bundle has both of."""
    pairs = [(loss, cost) for loss in list_losses(trade) for cost in list_costs(trade)]
    return [plot for loss, cost in pairs if (plot := build_trade_off_plot(trade, loss, cost)) is not None]


def build_trade_off_plot(trade: TradeOff, loss: Coordinate, cost: Coordinate) -> Plot | None:
    """Plot one loss against one cost; None when no bundle has both."""
    entries = [entry for entry in trade.entries if loss.pick(entry) is not None and cost.pick(entry) is not None]
    if not entries:
        return None
    dearest = max(_get(cost, entry) for entry in entries) * _leave_room(max(len(entry.name) for entry in entries))
    x_axis, x_ticks = build_linear_axis(0.0, dearest, LEFT + 8, WIDTH - RIGHT - 8, _format_tick)
    y_axis, y_ticks = _build_loss_axis(loss, [_get(loss, entry) for entry in entries])
    places = {entry.name: (x_axis.place(_get(cost, entry)), y_axis.place(_get(loss, entry))) for entry in entries}
    labels = place_labels(places)
    front = sorted(find_front(entries, loss, cost), key=lambda entry: _get(cost, entry))

    def mark(entry: Entry, kind: str) -> Mark:
        title = f"{entry.name}: {loss.describe(entry)}, {cost.describe(entry)}"
        return Mark(*places[entry.name], title, kind, label=labels[entry.name])

    series = [
        Series(
            "no other bundle is as good in both",
            "s0",
            draw_path([places[entry.name] for entry in front]),
            tuple(mark(entry, "dot") for entry in front),
        )
    ]
    if beaten := tuple(mark(entry, "ring") for entry in entries if entry not in front):
        series.append(Series("another one is", "eager", marks=beaten, swatch="ring"))
    better = "Higher" if loss.is_better_high else "Lower"
    title = f"{loss.title} against {cost.title}"
    return Plot(
        title[0].upper() + title[1:],
        f"{better} is better, and so is further left. {_describe_missing(trade, entries)}",
        loss.label,
        x_ticks,
        y_ticks,
        series,
        None,
        cost.label,
    )


def place_labels(places: dict[str, tuple[float, float]]) -> dict[str, Label]:
    """Return where the name of each point is written; what would cover another name or point is moved up.

    Args:
        places: Position of each point by name.
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


def _leave_room(characters: int) -> float:
    """Return by how much an axis has to be longer so that a name fits beside its last point."""
    share = min(_CHARACTER_WIDTH * characters / (WIDTH - RIGHT - LEFT), _MAX_NAME_SHARE)
    return 1 / (1 - share)


def _build_loss_axis(loss: Coordinate, values: Sequence[float]) -> tuple[Axis, list[Tick]]:
    if loss.is_logarithmic and (positive := [value for value in values if value > 0]):
        return build_error_axis(positive)
    return build_linear_axis(min(values), max(values), HEIGHT - BOTTOM, TOP, _format_tick)


def _describe_missing(trade: TradeOff, entries: Sequence[Entry]) -> str:
    missing = [entry.name for entry in trade.entries if entry not in entries]
    return f"Not measured: {', '.join(missing)}." if missing else ""


def _get(measure: Coordinate, entry: Entry) -> float:
    value = measure.pick(entry)
    assert value is not None  # entries that lack it were left out
    return value


def _format_tick(value: float) -> str:
    return f"{value:g}"
