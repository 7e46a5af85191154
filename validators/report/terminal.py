"""The report in a terminal: a table a backend that fits 80 columns, and the verdict as the last line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.terminal import make_table, make_text
from flash_export.validators.report.by_backend import group_by_length
from flash_export.validators.report.formatting import (
    capitalize,
    format_bytes,
    format_count,
    format_error,
    format_factor,
    format_inputs,
    format_interval,
    format_ms,
    format_percent,
    format_score,
    format_shape,
    format_share,
)
from flash_export.validators.report.measures import (
    compute_error_ratio,
    compute_noise_multiple,
    has_noise,
    select_comparisons,
)
from flash_export.validators.report.summary import summarize
from flash_export.validators.report.verdict import phrase_loss

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.console import Console
    from rich.text import Text

    from flash_export.validators.footprint import Footprint
    from flash_export.validators.report.by_backend import BackendSummary
    from flash_export.validators.report.summary import Summary
    from flash_export.validators.results import HeldoutScores, Row, Status, ValidationReport

STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow"}
# More rows than this are shown by groups of lengths.
_MAX_ROWS = 40
_ERRORS, _TIMES = ("error", "x eager", "of limit"), ("p50", "eager", "speedup")


def print_report(report: ValidationReport, console: Console) -> None:
    """Print each backend, the reasons, the diagnosis, and a last line that counts what passed, failed, was skipped."""
    summary = summarize(report)
    is_grouped = len(select_comparisons(report)) > _MAX_ROWS
    for backend in summary.tried:
        _print_backend(report, backend, console, is_grouped=is_grouped)
    for reason in summary.reasons:
        where = (f" ({reason.where})", "dim") if reason.where else ""
        status = reason.status, STYLES[reason.status]
        console.print(make_text(status, f" {reason.who}: {reason.text}", where), soft_wrap=True)
    if summary.hidden_reasons:
        console.print(make_text(f"and {summary.hidden_reasons} more reasons, in the report"))
    for fact in _list_facts(report, summary):
        console.print(make_text(fact))
    for sentence in report.diagnosis:
        console.print(make_text((sentence, "bold red")))
    style = "bold green" if report else "bold red"
    console.print(make_text((summary.word, style), f"  {summary.counts}"), soft_wrap=True)


def _print_backend(report: ValidationReport, backend: BackendSummary, console: Console, *, is_grouped: bool) -> None:
    counts = f"{backend.passed} passed, {backend.failed} failed, {backend.skipped} skipped"
    console.print(make_text((backend.name, "bold"), f"  {counts}"), soft_wrap=True)
    rows = [row for row in select_comparisons(report) if row.backend == backend.name]
    is_timed, shows_noise = backend.timed is not None, has_noise(report.rows)

    def list_cells(worst: Row | None, timed: Row | None) -> tuple[str, ...]:
        errors, times = _format_error(worst), _format_latency(timed) if is_timed else ()
        return (*(errors if shows_noise else errors[::2]), *times)

    headings = [*(_ERRORS if shows_noise else _ERRORS[::2]), *(_TIMES if is_timed else ())]
    lines: list[list[str | Text]]
    if is_grouped:
        headings = [report.unit, "checks", "result", *headings]
        lines = [
            [group.label, str(len(group.rows)), _format_status(group.status), *list_cells(group.worst, group.timed)]
            for group in group_by_length(rows)
        ]
    else:
        headings = ["shape", "result", *headings]
        lines = [[_name_shape(row), _format_status(row.status), *list_cells(row, row)] for row in rows]
    console.print(make_table(headings, lines, align="lrl" if is_grouped else "ll", header_style="dim"))
    for line in (_format_invariances(backend.invariances), _format_footprint(backend.footprint)):
        if line:
            console.print(line)
    console.print()


def _name_shape(row: Row) -> str:
    return "" if row.seq_len is None else f"{row.batch} x {row.seq_len}{format_inputs(row, ' ')}"


def _format_status(status: Status) -> Text:
    return make_text((status, STYLES[status]))


def _format_error(row: Row | None) -> tuple[str, str, str]:
    if row is None or row.max_rel_error is None:
        return "", "", ""
    ratio, multiple = compute_error_ratio(row), compute_noise_multiple(row)
    share = "" if ratio is None else f"{format_factor(ratio)}x" if ratio >= 2 else format_percent(ratio)
    return format_error(row.max_rel_error), "" if multiple is None else f"{format_factor(multiple)}x", share


def _format_latency(row: Row | None) -> tuple[str, ...]:
    if row is None or row.latency_ms is None or row.eager_latency_ms is None or row.speedup is None:
        return "", "", ""
    return format_ms(row.latency_ms.p50), format_ms(row.eager_latency_ms.p50), f"{format_factor(row.speedup)}x"


def _format_invariances(rows: tuple[Row, ...]) -> Text | None:
    """Return all in one line: the names of those that do not hold, and how many do."""
    if not rows:
        return None
    broken = [row for row in rows if row.status != "passed"]
    held = len(rows) - len(broken)
    parts = [part for row in broken for part in ((f"{row.check} {row.status}", STYLES[row.status]), ", ")]
    return make_text(("Invariances: ", "dim"), *parts, f"{held} hold" if broken else f"all {held} hold")


def _format_footprint(footprint: Footprint | None) -> Text | None:
    if footprint is None or footprint.open_ms is None:
        return None
    parts = [f"opens {format_ms(footprint.open_ms)}"]
    if footprint.first_call_ms is not None:
        parts.append(f"first call {format_ms(footprint.first_call_ms)}")
    if footprint.shape_change_ms is not None:
        parts.append(f"new shape +{format_ms(footprint.shape_change_ms)}")
    if footprint.peak_bytes is not None:
        parts.append(f"{format_bytes(footprint.peak_bytes)} at {footprint.peak_seq_len}")
    return make_text(("Fresh: ", "dim"), ", ".join(parts))


def _list_facts(report: ValidationReport, summary: Summary) -> Iterator[str]:
    if report.caveat:
        yield report.caveat
    if report.scores and report.is_quantized:
        yield _describe_scores(report, report.scores)
    if summary.worst is not None:
        yield f"Largest error: {_describe_worst(summary.worst)}"
    if summary.measures:
        yield f"At the worst: {_describe_measures(report, summary.measures)}{_describe_random(report, summary)}"
    if report.scores and not report.is_quantized:
        yield _describe_scores(report, report.scores)
    fastest = summary.fastest
    row = None if fastest is None else fastest.timed
    if fastest is not None and row is not None and row.latency_ms and row.speedup:
        rate = "" if row.units_per_s is None else f", {format_count(row.units_per_s)} {report.unit}/s"
        is_chance = row.eager_latency_ms is not None and row.latency_ms.overlaps(row.eager_latency_ms)
        chance = "; their intervals overlap" if is_chance else ""
        yield (
            f"Speed: {fastest.name} takes {format_ms(row.latency_ms.p50)} ({format_interval(row.latency_ms)}){rate}, "
            f"{format_factor(row.speedup)}x as fast as eager, at {format_shape(row)}{chance}"
        )
        if row.compiled_latency_ms:
            yield f"torch.compile takes {format_ms(row.compiled_latency_ms.p50)} there"


def _describe_worst(row: Row) -> str:
    multiple = compute_noise_multiple(row)
    size = "" if row.max_rel_error is None else f", {format_error(row.max_rel_error)} of the largest output"
    own = "" if multiple is None else f", {format_factor(multiple)}x the eager model's own"
    return f"{format_share(row)}{size}{own}, at {format_shape(row)}"


def _describe_scores(report: ValidationReport, scores: HeldoutScores) -> str:
    values = ", ".join(f"{name} {format_score(scores.measure, value)}" for name, value in scores.values.items())
    loss, accepted = report.score_loss, report.environment.get("accepted_loss")
    change = ""
    if report.is_quantized and loss is not None:
        change = f" ({phrase_loss(scores.measure, loss)}{f', {accepted} is accepted' if accepted else ''})"
    return f"{capitalize(scores.measure.label)}: {values}{change}"


def _describe_measures(report: ValidationReport, measures: Mapping[str, float]) -> str:
    return ", ".join(
        f"{measure.label} {measure.format(measures[measure.name])}"
        for measure in report.measures
        if measure.name in measures
    )


def _describe_random(report: ValidationReport, summary: Summary) -> str:
    random = summary.random_measures
    return f", on held-out data ({_describe_measures(report, random)} on random inputs)" if random else ""
