"""The report as GitHub-flavoured Markdown, short enough for the summary of a CI job."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from flash_export.printable import escape_unprintable
from flash_export.validators.report.claims import tabulate_claims
from flash_export.validators.report.formatting import (
    capitalize,
    format_bytes,
    format_count,
    format_error,
    format_factor,
    format_interval,
    format_measure,
    format_ms,
    format_percent,
    format_score,
    format_shape,
)
from flash_export.validators.report.measures import compute_error_ratio, compute_noise_multiple, has_noise
from flash_export.validators.report.summary import name_agreement, summarize
from flash_export.validators.results import EAGER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flash_export.validators.footprint import Footprint
    from flash_export.validators.report.by_backend import BackendSummary
    from flash_export.validators.report.summary import Summary
    from flash_export.validators.results import Row, ValidationReport

SIGNS = {"passed": "✅", "failed": "❌", "skipped": "⚪"}
_NONE = "-"
_SHOWN_FAILURES = 20


def render_markdown(report: ValidationReport) -> str:
    """Return the summary: verdict, diagnosis, a table of backends, failures, and the rest folded away."""
    return "\n".join(_list_lines(report, summarize(report))) + "\n"


def escape(text: str) -> str:
    """Make text stand for itself in a line or in a cell of a table."""
    plain = html.escape(escape_unprintable(" ".join(text.split())), quote=False)
    return "".join(f"\\{character}" if character in "\\`*_[]|~#@$" else character for character in plain)


def build_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 2) -> Iterator[str]:
    """Yield the lines of a table whose first ``left`` columns are aligned to the left, the others to the right."""
    yield f"| {' | '.join(headings)} |"
    yield f"|{'|'.join('---' if index < left else '---:' for index in range(len(headings)))}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def fold(title: str, lines: Sequence[str]) -> Iterator[str]:
    """Yield lines that a reader unfolds by a click on the title."""
    yield from ("", f"<details><summary>{title}</summary>", "", *lines, "", "</details>")


def _list_lines(report: ValidationReport, summary: Summary) -> Iterator[str]:
    sign = SIGNS["passed" if report else "failed" if summary.failed else "skipped"]
    yield f"## {sign} {escape(summary.verdict)}"
    yield ""
    plan = report.environment.get("plan")
    of_plan = "" if plan is None else f", plan {escape(str(plan))}"
    yield f"Validation of {escape(report.bundle)}{of_plan}: **{summary.counts}**."
    for sentence in (*report.diagnosis, *([report.caveat] if report.caveat else [])):
        yield from ("", f"> **{escape(sentence)}**")
    yield ""
    headings = ["Backend", "Result", "Checks", "Error"] + (["x PyTorch's own"] if has_noise(report.rows) else [])
    scores = report.scores
    headings += ["Of limit", name_agreement(report)]
    headings += [capitalize(scores.measure.label)] if scores else []
    unit = capitalize(report.unit)
    headings += [unit, "Time (95% interval)", f"{unit}/s", "Speed x PyTorch's"] if summary.fastest else []
    yield from build_table(headings, [_format_backend(one, report, summary) for one in summary.backends])
    if scores:
        accepted = report.environment.get("accepted_loss")
        limit = f"; {escape(str(accepted))} worse is accepted" if accepted and report.is_quantized else ""
        own = format_score(scores.measure, scores.values[EAGER])
        yield from ("", f"PyTorch itself: {own} {scores.measure.label}{limit}.")
    for reason in summary.reasons:
        if reason.status == "skipped":
            yield from ("", f"{SIGNS['skipped']} {escape(reason.who)} skipped: {escape(reason.text)}")
    yield from _list_failures(report)
    if claims := tabulate_claims(report):
        rows = [[escape(claim.text), *map(_format_claim, claim.rows)] for claim in claims.claims]
        headings = ["Claim", *map(escape, claims.backends)]
        yield from fold("What must hold of any model", list(build_table(headings, rows, left=len(headings))))
    if report.footprints:
        headings = ["Backend", "Opens in", "First call", "Cost of a new length", "Memory of a run", f"of {report.unit}"]
        footprints = list(build_table(headings, list(map(_format_footprint, report.footprints)), left=1))
        yield from fold("In a fresh process", footprints)
    pairs = [[escape(name.replace("_", " ")), escape(str(value))] for name, value in report.environment.items()]
    yield from fold("Environment", list(build_table(["", ""], pairs)))


def _format_backend(backend: BackendSummary, report: ValidationReport, summary: Summary) -> list[str]:
    worst, timed = backend.worst, backend.timed
    multiple, share = (None, None) if worst is None else (compute_noise_multiple(worst), compute_error_ratio(worst))
    error = None if worst is None else worst.max_rel_error
    measure = report.measures[0]
    agreement = backend.measures.get(measure.name)
    cells = [
        escape(backend.name),
        f"{SIGNS[backend.status]} {backend.status}",
        f"{backend.passed} passed, {backend.failed} failed, {backend.skipped} skipped",
        _NONE if error is None else format_error(error),
        *([_NONE if multiple is None else f"{format_factor(multiple)}x"] if has_noise(report.rows) else []),
        _NONE if share is None else format_percent(share),
        _NONE if agreement is None else format_measure(measure, agreement),
    ]
    if report.scores:
        cells.append(_NONE if backend.score is None else format_score(report.scores.measure, backend.score))
    if summary.fastest:
        cells += [_NONE] * 4 if timed is None else _format_timing(timed)
    return cells


def _format_timing(row: Row) -> list[str]:
    if row.latency_ms is None or row.speedup is None:
        return [_NONE] * 4
    length = str(row.seq_len) if row.batch == 1 else f"{row.batch} x {row.seq_len}"
    rate = _NONE if row.units_per_s is None else format_count(row.units_per_s)
    time = f"{format_ms(row.latency_ms.p50)} ({format_interval(row.latency_ms)})"
    return [length, time, rate, f"{format_factor(row.speedup)}x"]


def _list_failures(report: ValidationReport) -> Iterator[str]:
    failed = [row for row in report.rows if row.status == "failed"]
    if not failed:
        return
    shown = [[escape(row.backend), escape(row.check), format_shape(row), escape(row.reason or "")] for row in failed]
    yield from ("", "### What failed", "")
    yield from build_table(["Backend", "Check", "Shape", "Reason"], shown[:_SHOWN_FAILURES], left=4)
    if len(shown) > _SHOWN_FAILURES:
        yield from ("", f"and {len(shown) - _SHOWN_FAILURES} more, in report.html")


def _format_claim(row: Row | None) -> str:
    return _NONE if row is None else f"{SIGNS[row.status]} {escape(row.reason or '') or 'holds'}"


def _format_footprint(footprint: Footprint) -> list[str]:
    def in_ms(value: float | None) -> str:
        return _NONE if value is None else format_ms(value)

    peak = footprint.peak_bytes
    return [
        escape(footprint.backend),
        in_ms(footprint.open_ms),
        in_ms(footprint.first_call_ms),
        in_ms(footprint.shape_change_ms),
        _NONE if peak is None else format_bytes(peak),
        _NONE if footprint.peak_seq_len is None else str(footprint.peak_seq_len),
    ]
