"""A comparison of two reports in words: the sections that the terminal and Markdown both show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.validators.report.formatting import (
    format_bytes,
    format_error,
    format_factor,
    format_interval,
    format_ms,
    format_shape,
    format_share,
)
from flash_export.validators.report.markdown import SIGNS, build_table, escape
from flash_export.validators.report.measures import compute_error_ratio
from flash_export.validators.results import ACCURACY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flash_export.validators.report.comparison import (
        Comparison,
        ErrorChange,
        LatencyChange,
        ValueChange,
        VerdictChange,
    )
    from flash_export.validators.results import Row

SHOWN_LINES = 20


@dataclass(frozen=True)
class Section:
    """A heading and a line a change; the first column names what changed, the second says how."""

    title: str
    lines: tuple[tuple[str, str], ...]

    @property
    def shown(self) -> tuple[tuple[str, str], ...]:
        """The first lines."""
        return self.lines[:SHOWN_LINES]

    @property
    def hidden(self) -> int:
        """Number of the others."""
        return max(len(self.lines) - SHOWN_LINES, 0)


def list_sections(comparison: Comparison) -> list[Section]:
    """Return the sections in which anything changed."""
    sections = (
        Section(
            "Verdicts",
            tuple((name_row(change.row), _phrase_verdict(change)) for change in comparison.verdicts),
        ),
        Section("Errors", tuple((name_row(change.row), _phrase_error(change)) for change in comparison.errors)),
        Section("Latency", tuple((name_row(change.row), _phrase_latency(change)) for change in comparison.latencies)),
        Section(
            "Held-out data",
            tuple((change.name, f"{change.before:.4f}, now {change.after:.4f}") for change in comparison.scores),
        ),
        Section("Memory of a run", tuple((change.name, _phrase_memory(change)) for change in comparison.memory)),
        Section("Checks", tuple(_list_coverage(comparison))),
        Section(
            "Environment",
            tuple(
                (change.name.replace("_", " "), f"{_or_none(change.before)}, now {_or_none(change.after)}")
                for change in comparison.environment
            ),
        ),
    )
    return [section for section in sections if section.lines]


def phrase_outcome(comparison: Comparison) -> str:
    """Return the comparison in one sentence."""
    shared = f"{comparison.shared} checks in both"
    if regressions := len(comparison.regressions):
        return f"{regressions} of {shared} passed before and {'fails' if regressions == 1 else 'fail'} now"
    if not comparison:
        return f"the first run passed as a whole and the second does not; {shared}"
    slower = sum(change.is_slower for change in comparison.latencies)
    faster = len(comparison.latencies) - slower
    return f"nothing that passed before fails now; {shared}, {faster} faster, {slower} slower"


def render_comparison_markdown(comparison: Comparison) -> str:
    """Return the comparison as GitHub-flavoured Markdown."""
    return "\n".join(_list_markdown(comparison)) + "\n"


def name_row(row: Row) -> str:
    """Name a check: ``ort-cpu, batch 1, length 257``."""
    check = "" if row.check == ACCURACY else f" {row.check}"
    return f"{row.backend}{check}, {format_shape(row)}"


def _list_markdown(comparison: Comparison) -> Iterator[str]:
    outcome = phrase_outcome(comparison)
    yield f"## {SIGNS['passed' if comparison else 'failed']} {escape(outcome[:1].upper() + outcome[1:])}"
    yield ""
    yield f"Compared: {escape(comparison.before.bundle)} before, {escape(comparison.after.bundle)} now."
    for section in list_sections(comparison):
        yield from ("", f"### {section.title}", "")
        yield from build_table(["", "Change"], [[escape(name), escape(text)] for name, text in section.shown])
        if section.hidden:
            yield from ("", f"and {section.hidden} more")


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


def _phrase_memory(change: ValueChange) -> str:
    return f"{format_bytes(int(change.before or 0))}, now {format_bytes(int(change.after or 0))}"


def _list_coverage(comparison: Comparison) -> Iterator[tuple[str, str]]:
    for backend in dict.fromkeys((*comparison.dropped, *comparison.added)):
        dropped, added = comparison.dropped.get(backend, 0), comparison.added.get(backend, 0)
        yield backend, f"{dropped} only in the first run, {added} only in the second"


def _or_none(value: object) -> str:
    return "none" if value is None else str(value)
