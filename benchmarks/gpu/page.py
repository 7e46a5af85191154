"""What was measured, as a page with plots: times by length, steps by context, the card's limits, the targets."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from flash_export.report.document import (
    Axis,
    Document,
    Plot,
    Plots,
    Point,
    Section,
    Series,
    Styled,
    Table,
    number,
    tabulate,
    text,
)
from gpu.limits import BANDWIDTH
from gpu.sizes import PRECISIONS
from gpu.targets import judge_targets

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from flash_export.report.document import Style
    from gpu.rows import Kind, Row, RowFile
    from gpu.sizes import Sizes
    from gpu.targets import Verdict

STYLES = ("s0", "s1", "s2", "s3", "s4", "s5")
TITLES: dict[Kind, str] = {
    "forward": "A pass over a text",
    "decode": "One step of decoding",
    "branch": "The linear branch of all layers",
}
_VERDICTS: dict[str, Style] = {"reached": "passed", "missed": "failed", "not measured": "skipped"}


def describe_results(file: RowFile, sizes: Sizes, *, is_quick: bool) -> Document:
    """Return the report of what is in a file."""
    verdicts = judge_targets(file, sizes)
    counts = {status: sum(verdict.status == status for verdict in verdicts) for status in _VERDICTS}
    config, measured = sizes.config, [kind for kind in TITLES if _list_measured(file, kind)]
    return Document(
        subject=f"FLASH, {config.depth} layers, d={config.dim}, on {file.environment.get('device', 'nothing')}",
        command="python -m gpu",
        headline="Targets: " + ", ".join(f"{count} {status}" for status, count in counts.items()) + ".",
        status="failed" if counts["missed"] else "skipped" if counts["not measured"] else "passed",
        word="REACHED" if counts["reached"] == len(verdicts) else "NOT REACHED",
        caveats=("A tiny model: these numbers mean nothing.",) if is_quick else (),
        sections=(
            Section("Targets", _tabulate_verdicts(verdicts), "The better of bf16 and fp16, at the worst length."),
            Section("What the card does", _tabulate_limits(file)),
            *(Section(f"{TITLES[kind]}, ms", _tabulate_times(file, kind)) for kind in measured),
            Section("", Plots(tuple(_iterate_plots(file, measured))), views=("page",)),
            Section("Questions", _tabulate_reasons([row for row in file.rows if row.kind == "question"])),
            Section("Not measured", _tabulate_reasons(_list_first_failures(file))),
        ),
        environment=tuple((name, str(value)) for name, value in file.environment.items()),
    )


def _list_measured(file: RowFile, kind: Kind) -> dict[str, list[Row]]:
    """Return the rows with a time, by candidate, the shortest length first."""
    found: dict[str, list[Row]] = {}
    for row in sorted(file.rows, key=lambda row: row.seq_len):
        if row.kind == kind and row.latency_ms is not None:
            found.setdefault(row.candidate, []).append(row)
    return found


def _list_first_failures(file: RowFile) -> list[Row]:
    """Return the first row of each candidate that could not be measured."""
    found: dict[tuple[str, str], Row] = {}
    for row in file.rows:
        if row.kind != "question" and row.latency_ms is None:
            found.setdefault((row.kind, row.candidate), row)
    return list(found.values())


def _tabulate_verdicts(verdicts: list[Verdict]) -> Table:
    return tabulate(
        verdicts,
        [
            (text("target", is_prose=True), lambda one: one.name),
            (number("at least"), lambda one: f"{one.at_least:g}"),
            (number("measured"), lambda one: _format(one.value, ".2f")),
            (text("where it is least"), lambda one: one.where),
            (text("verdict"), lambda one: Styled(one.status, _VERDICTS[one.status])),
        ],
    )


def _tabulate_limits(file: RowFile) -> Table:
    return tabulate(
        [row for row in file.rows if row.kind == "limit"],
        [
            (text("limit"), lambda row: row.candidate),
            (number("measured"), _format_rate),
            (number("ms"), lambda row: _format(row.latency_ms, ".4g")),
            (number("clock, MHz"), lambda row: _format(row.clock_mhz, "d")),
        ],
    )


def _tabulate_times(file: RowFile, kind: Kind) -> Table:
    measured = _list_measured(file, kind)
    times = {(row.candidate, row.seq_len): row.latency_ms for rows in measured.values() for row in rows}
    errors = {name: next((row.error for row in rows if row.error is not None), None) for name, rows in measured.items()}

    def show_time(seq_len: int, candidate: str) -> str | None:
        return _format(times.get((candidate, seq_len)), ".4g")

    return tabulate(
        list(measured),
        [
            (text("candidate"), lambda name: name),
            *((number(f"{n:,}"), partial(show_time, n)) for n in sorted({n for _, n in times})),
            (number("error"), lambda name: _format(errors[name], ".1e")),
        ],
    )


def _tabulate_reasons(rows: list[Row]) -> Table:
    def name(row: Row) -> str:
        return f"{row.kind}: {row.candidate}" + (f" at {row.seq_len:,}" if row.seq_len else "")

    return tabulate(
        rows, [(text("what", is_prose=True), name), (text("reason", is_prose=True), lambda row: row.reason)]
    )


def _iterate_plots(file: RowFile, kinds: Iterable[Kind]) -> Iterator[Plot]:
    """Return a plot for each kind and precision, of at most as many candidates as there are colours."""
    for kind in kinds:
        for precision in PRECISIONS:
            measured = _list_measured(file, kind).items()
            if found := {name: rows for name, rows in measured if name.endswith(precision)}:
                yield _plot(kind, precision, found)


def _plot(kind: Kind, precision: str, measured: dict[str, list[Row]]) -> Plot:
    series = []
    for style, (name, rows) in zip(STYLES, measured.items(), strict=False):
        times = [(row.seq_len, row.latency_ms) for row in rows if row.latency_ms is not None]
        points = tuple(Point(n, time_ms, f"{name}, {n:,} tokens: {time_ms:.4g} ms") for n, time_ms in times)
        series.append(Series(name, style, tuple(times), points))
    axis = Axis("tokens before the step" if kind == "decode" else "tokens", "lengths")
    title = f"{TITLES[kind]}, {precision}"
    return Plot(title, "Medians of the runs.", axis, Axis("time", "decades", "ms"), tuple(series))


def _format(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)


def _format_rate(row: Row) -> str | None:
    if row.value is None:
        return None
    return f"{row.value / 1e9:,.4g} GB/s" if row.candidate == BANDWIDTH else f"{row.value / 1e12:,.4g} TFLOP/s"
