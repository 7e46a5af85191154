"""The report of a comparison of bundles: what each is worth, how long it takes, and which ones no other one beats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.formatting import capitalize, format_bytes, format_change, format_known
from flash_export.report.document import (
    Axis,
    Document,
    Explanations,
    Note,
    Notes,
    Plot,
    Plots,
    Point,
    Section,
    Series,
    number,
    tabulate,
    text,
)
from flash_export.validators.report.rows import format_interval, format_measure, format_median, name_measure
from flash_export.validators.trade_off.front import find_front, list_costs, list_losses

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flash_export.report.document import Table
    from flash_export.validators.trade_off.front import Quantity
    from flash_export.validators.trade_off.results import Entry, Timing, TradeOff


def describe_trade_off(trade: TradeOff) -> Document:
    """Return the report of a comparison."""
    own, model = trade.reference_score, ""
    if own is not None and trade.score is not None:
        model = f"; the model itself in float64: {own:.4f} {trade.score.label}"
    name = trade.reference.name
    gaps = tuple(Note(reason, who=entry.name) for entry in trade.entries for reason in entry.reasons)
    pairs = [(loss, cost) for loss in list_losses(trade) for cost in list_costs(trade)]
    plots = (build_trade_off_plot(trade, loss, cost) for loss, cost in pairs)
    return Document(
        subject=f"Compared with {trade.reference.path}",
        command="flash-export compare",
        headline=f"What {len(trade.entries)} bundle{'' if len(trade.entries) == 1 else 's'} cost and lose",
        lead=f"{trade.predictions:,} predictions on {trade.data}{model}.",
        sections=(
            Section("", Plots(tuple(plot for plot in plots if plot is not None)), views=("page",)),
            Section(
                "Predictions and size",
                _tabulate_quality(trade),
                f"Sizes, times and changes are against {name}; predictions against the model itself in float64.",
            ),
            Section(
                f"Time of a batch of {trade.batch} on {trade.backend}, in turn",
                _tabulate_times(trade),
                f"One bundle after the other; the ratio says how many times as long as {name}.",
            ),
            Section("Not measured", Notes(gaps)),
            Section("No other bundle is at least as good in both and better in one", Notes(tuple(_list_fronts(trade)))),
            Section("How to read this", Explanations(tuple(_list_terms(trade))), views=("page",)),
        ),
        environment=tuple(trade.environment.items()),
    )


def describe_run(timing: Timing, unit: str) -> str:
    """Name what was timed: ``512 tokens`` or ``decode step``."""
    return "decode step" if timing.seq_len is None else f"{timing.seq_len} {unit}"


def build_trade_off_plot(trade: TradeOff, loss: Quantity, cost: Quantity) -> Plot | None:
    """Plot one loss against one cost; None when no bundle has both."""
    places = {
        entry.name: (x, y)
        for entry in trade.entries
        if (x := cost.pick(entry)) is not None and (y := loss.pick(entry)) is not None
    }
    if not places:
        return None

    def make_points(entries: list[Entry], *, is_beaten: bool) -> tuple[Point, ...]:
        return tuple(
            Point(
                *places[entry.name],
                title=f"{entry.name}: {loss.describe(entry)}, {cost.describe(entry)}",
                kind="ring" if is_beaten else "dot",
                label=entry.name,
            )
            for entry in entries
        )

    front = sorted(find_front(trade.entries, loss, cost), key=lambda entry: places[entry.name][0])
    beaten = [entry for entry in trade.entries if entry.name in places and entry not in front]
    line = tuple(places[entry.name] for entry in front)
    series = [Series("no other bundle is as good in both", "s0", line, make_points(front, is_beaten=False))]
    if beaten:
        series.append(Series("another one is", "eager", points=make_points(beaten, is_beaten=True), swatch="ring"))
    missing = [entry.name for entry in trade.entries if entry.name not in places]
    is_logarithmic = loss.is_logarithmic and any(y > 0 for _, y in places.values())
    return Plot(
        capitalize(f"{loss.title} against {cost.title}"),
        f"{'Higher' if loss.is_better_high else 'Lower'} is better, and so is further left."
        f"{' Not measured: ' if missing else ''}{', '.join(missing)}{'.' if missing else ''}",
        Axis(cost.label, "linear"),
        Axis(loss.label, "decades" if is_logarithmic else "linear"),
        tuple(series),
    )


def _tabulate_quality(trade: TradeOff) -> Table:
    """Return a row per bundle; a score only where there is one, memory if it was measured."""
    has_memory = any(entry.footprint is not None for entry in trade.entries)
    score = trade.score
    return tabulate(
        trade.entries,
        [
            (text("bundle"), lambda entry: entry.name),
            (text("precision"), lambda entry: entry.precision),
            (number("size"), lambda entry: format_bytes(entry.size_bytes)),
            (number("ratio"), lambda entry: f"{entry.size_ratio:.2f}"),
            score is not None
            and (number(score.label), lambda entry: format_known("{:.4f}".format, entry.quality.score)),
            score is not None and (number("change"), lambda entry: format_known(format_change, entry.quality.change)),
            *(
                (number(name_measure(one)), lambda entry, one=one: format_measure(one, entry.quality.measures))
                for one in trade.measures
            ),
            has_memory and (number("memory"), _format_memory),
        ],
    )


def _format_memory(entry: Entry) -> str | None:
    """Format what the session and its longest run take: ``29 MiB``."""
    return None if entry.footprint is None else format_known(format_bytes, entry.footprint.total_bytes)


def _tabulate_times(trade: TradeOff) -> Table:
    """Return a row for each run of each bundle, those of one run together."""
    runs = [
        ("" if index else describe_run(timing, trade.unit), entry.name, timing)
        for column in zip(*(entry.all_timings for entry in trade.entries), strict=True)
        for index, (entry, timing) in enumerate(zip(trade.entries, column, strict=True))
    ]
    return tabulate(
        runs,
        [
            (text("run"), lambda run: run[0]),
            (text("bundle"), lambda run: run[1]),
            (number("time"), lambda run: format_median(run[2].latency_ms)),
            (number("95% interval"), lambda run: format_known(format_interval, run[2].latency_ms)),
            (number("ratio"), lambda run: format_known(lambda ratio: f"{ratio.median:.2f}", run[2].ratio)),
            (
                number("95% interval"),
                lambda run: format_known(lambda ratio: f"{ratio.low:.2f} to {ratio.high:.2f}", run[2].ratio),
            ),
        ],
    )


def _list_fronts(trade: TradeOff) -> Iterator[Note]:
    """Yield for each cost which bundles no other one beats in it and in the score, or without it in divergence."""
    for loss in list_losses(trade)[:1]:
        for cost in list_costs(trade):
            names = ", ".join(entry.name for entry in find_front(trade.entries, loss, cost))
            yield Note(names, who=f"{loss.title}, {cost.title}")


def _list_terms(trade: TradeOff) -> Iterator[tuple[str, str]]:
    if trade.score is not None:
        meaning = f"{trade.score.meaning} The change is how much worse than the first bundle it is."
        yield f"{capitalize(trade.score.label)}, change", meaning
    yield from ((capitalize(measure.label), measure.meaning) for measure in trade.measures)
    yield (
        "Size",
        "The forward graph with the weights that it reads. The model's own weights, which a bundle keeps for "
        "validation, do not count.",
    )
    yield (
        "Time",
        "The median with the interval that holds it with 95% confidence. The ratio is taken turn by turn, so that "
        "whatever else the machine does falls on both; where its interval holds 1, nothing can be said of which is "
        "faster.",
    )
    yield "Memory", "What a fresh process takes to open the forward graph and to run it at the longest of the lengths."
    yield (
        "The line in the plots",
        "The bundles that are worth choosing from: no other one is at least as good in both and better in one. It goes "
        "by the medians.",
    )
