"""The report in a terminal: a table a backend that fits 80 columns, and the verdict as the last line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from flash_export.validators.report.by_backend import group_by_length
from flash_export.validators.report.formatting import (
    format_agreement,
    format_bytes,
    format_count,
    format_error,
    format_factor,
    format_inputs,
    format_interval,
    format_ms,
    format_percent,
    format_shape,
    format_share,
)
from flash_export.validators.report.measures import compute_error_ratio, compute_noise_multiple, select_comparisons
from flash_export.validators.report.summary import summarize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from flash_export.validators.footprint import Footprint
    from flash_export.validators.report.by_backend import BackendSummary
    from flash_export.validators.report.summary import Summary
    from flash_export.validators.results import Row, Status, ValidationReport

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
        line = Text(reason.status, STYLES[reason.status]).append(f" {reason.backend}: {reason.text}", "default")
        if reason.where:
            line.append(f" ({reason.where})", "dim")
        console.print(line, soft_wrap=True)
    if summary.hidden_reasons:
        console.print(f"and {summary.hidden_reasons} more reasons, in the report", highlight=False)
    for fact in _list_facts(report, summary):
        console.print(fact, highlight=False)
    for sentence in report.diagnosis:
        console.print(Text(sentence, "bold red"))
    style = "bold green" if report else "bold red"
    console.print(Text(summary.word, style).append(f"  {summary.counts}", "default"), soft_wrap=True)


def _print_backend(report: ValidationReport, backend: BackendSummary, console: Console, *, is_grouped: bool) -> None:
    counts = f"{backend.passed} passed, {backend.failed} failed, {backend.skipped} skipped"
    console.print(Text(backend.name, "bold").append(f"  {counts}", "default"), soft_wrap=True)
    rows = [row for row in select_comparisons(report) if row.backend == backend.name]
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    for heading in ("tokens", "checks") if is_grouped else ("shape",):
        table.add_column(heading, justify="right" if heading == "checks" else "left", no_wrap=True)
    table.add_column("result", no_wrap=True)
    is_timed = backend.timed is not None
    for heading in (*_ERRORS, *(_TIMES if is_timed else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    if is_grouped:
        for group in group_by_length(rows):
            start = (group.label, str(len(group.rows)), _format_status(group.status))
            times = _format_latency(group.timed) if is_timed else ()
            table.add_row(*start, *_format_error(group.worst), *times)
    else:
        for row in rows:
            shape = "" if row.seq_len is None else f"{row.batch} x {row.seq_len}{format_inputs(row, ' ')}"
            times = _format_latency(row) if is_timed else ()
            table.add_row(shape, _format_status(row.status), *_format_error(row), *times)
    console.print(table)
    for line in (_format_invariances(backend.invariances), _format_footprint(backend.footprint)):
        if line:
            console.print(line, highlight=False)
    console.print()


def _format_status(status: Status) -> Text:
    return Text(status, STYLES[status])


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
    line, held = Text("Invariances: ", "dim"), 0
    for row in rows:
        if row.status == "passed":
            held += 1
        else:
            line.append(f"{row.check} {row.status}", STYLES[row.status]).append(", ", "default")
    return line.append(f"all {held} hold" if held == len(rows) else f"{held} hold", "default")


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
    return Text("Fresh: ", "dim").append(", ".join(parts), "default")


def _list_facts(report: ValidationReport, summary: Summary) -> Iterator[str]:
    if report.caveat:
        yield report.caveat
    if summary.worst is not None:
        multiple = compute_noise_multiple(summary.worst)
        own = "" if multiple is None else f"{format_factor(multiple)}x the eager model's own, "
        yield f"Largest error: {own}{format_share(summary.worst)}, at {format_shape(summary.worst)}"
    if summary.lowest_agreement is not None and summary.highest_kl_bits is not None:
        agreement, divergence = format_agreement(summary.lowest_agreement), format_error(summary.highest_kl_bits)
        yield f"Same top token: at {agreement} of the positions or more; KL divergence up to {divergence} bits"
    if report.bits_per_byte:
        bits = ", ".join(f"{name} {value:.4f}" for name, value in report.bits_per_byte.items())
        yield f"Bits per byte on held-out text: {bits}"
    fastest = summary.fastest
    row = None if fastest is None else fastest.timed
    if fastest is not None and row is not None and row.latency_ms and row.speedup:
        rate = "" if row.tokens_per_s is None else f", {format_count(row.tokens_per_s)} tokens/s"
        is_chance = row.eager_latency_ms is not None and row.latency_ms.overlaps(row.eager_latency_ms)
        chance = "; their intervals overlap" if is_chance else ""
        yield (
            f"Speed: {fastest.name} takes {format_ms(row.latency_ms.p50)} ({format_interval(row.latency_ms)}){rate}, "
            f"{format_factor(row.speedup)}x as fast as eager, at {format_shape(row)}{chance}"
        )
        if row.compiled_latency_ms:
            yield f"torch.compile takes {format_ms(row.compiled_latency_ms.p50)} there"
