"""The report of what changed from one validation to another: a section for whatever did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.formatting import capitalize, format_bytes, format_error, format_factor, format_ms
from flash_export.report.document import Document, Section, Table, TableRow, text
from flash_export.validators.report.rows import compute_error_ratio, format_interval, format_shape, format_share
from flash_export.validators.results import ACCURACY

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from flash_export.validators.report.comparison import Comparison, ErrorChange, LatencyChange, VerdictChange
    from flash_export.validators.results import Row

_MAX_LINES = 20
_COLUMNS = (text("Of what", is_prose=True), text("Change", is_prose=True))


def describe_comparison(comparison: Comparison) -> Document:
    """Return the report of a comparison."""
    return Document(
        subject=f"{comparison.before.bundle} before, {comparison.after.bundle} now",
        command="flash-export report",
        headline=f"{capitalize(_phrase_outcome(comparison))}.",
        status="passed" if comparison else "failed",
        word="NO WORSE" if comparison else "WORSE",
        sections=(
            _make_section("Verdicts", ((name_row(one.row), _phrase_verdict(one)) for one in comparison.verdicts)),
            _make_section("Errors", ((name_row(one.row), _phrase_error(one)) for one in comparison.errors)),
            _make_section("Latency", ((name_row(one.row), _phrase_latency(one)) for one in comparison.latencies)),
            _make_section(
                "Held-out data", ((one.name, f"{one.before:.4f}, now {one.after:.4f}") for one in comparison.scores)
            ),
            _make_section(
                "Memory of a run",
                (
                    (one.name, f"{format_bytes(int(one.before or 0))}, now {format_bytes(int(one.after or 0))}")
                    for one in comparison.memory
                ),
            ),
            _make_section("Checks", _list_coverage(comparison)),
            _make_section(
                "Environment",
                (
                    (one.name.replace("_", " "), f"{_or_none(one.before)}, now {_or_none(one.after)}")
                    for one in comparison.environment
                ),
            ),
        ),
    )


def name_row(row: Row) -> str:
    """Name a check: ``ort-cpu, batch 1, length 257``."""
    check = "" if row.check == ACCURACY else f" {row.check}"
    return f"{row.backend}{check}, {format_shape(row)}"


def _make_section(title: str, lines: Iterable[tuple[str, str]]) -> Section:
    return Section(title, Table(_COLUMNS, tuple(TableRow(line) for line in lines), _MAX_LINES))


def _phrase_outcome(comparison: Comparison) -> str:
    shared = f"{comparison.shared} checks in both"
    if regressions := len(comparison.regressions):
        return f"{regressions} of {shared} passed before and {'fails' if regressions == 1 else 'fail'} now"
    if not comparison:
        return f"the first run passed as a whole and the second does not; {shared}"
    slower = sum(change.is_slower for change in comparison.latencies)
    faster = len(comparison.latencies) - slower
    return f"nothing that passed before fails now; {shared}, {faster} faster, {slower} slower"


def _phrase_verdict(change: VerdictChange) -> str:
    text = f"{change.before or 'not checked'} before, {change.row.status} now"
    if (compute_error_ratio(change.row) or 0.0) > 1 or (change.row.status == "passed" and change.row.tolerance):
        return f"{text}, {format_share(change.row)}"
    return f"{text}: {change.row.reason}" if change.row.reason else text


def _phrase_error(change: ErrorChange) -> str:
    times = "" if change.factor is None else f", {format_factor(change.factor)} times"
    return f"{format_error(change.before)}, now {format_error(change.after)}{times}"


def _phrase_latency(change: LatencyChange) -> str:
    old, new = change.old, change.new
    factor, word = (change.factor, "slower") if change.is_slower else (1 / change.factor, "faster")
    text = (
        f"{format_factor(factor)} times {word}: {format_ms(old.p50)} ({format_interval(old)}), "
        f"now {format_ms(new.p50)} ({format_interval(new)})"
    )
    if change.eager_factor is None:
        return text
    return f"{text}; eager takes {format_factor(change.eager_factor)} times as long as before"


def _list_coverage(comparison: Comparison) -> Iterator[tuple[str, str]]:
    for backend in dict.fromkeys((*comparison.dropped, *comparison.added)):
        dropped, added = comparison.dropped.get(backend, 0), comparison.added.get(backend, 0)
        yield backend, f"{dropped} only in the first run, {added} only in the second"


def _or_none(value: object) -> str:
    return "none" if value is None else str(value)
