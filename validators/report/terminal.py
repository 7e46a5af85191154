"""The report in a terminal: a table and a summary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from flash_export.validators.report.summary import (
    compute_error_ratio,
    format_ms,
    format_percent,
    format_shape,
    format_share,
    summarize,
)

if TYPE_CHECKING:
    from rich.console import Console

    from flash_export.validators.results import Row, ValidationReport

_STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow"}


def print_report(report: ValidationReport, console: Console) -> None:
    """Print the table, the reasons, and a last line that counts what passed, failed and was skipped."""
    console.print(_build_table(report))
    summary = summarize(report)
    for reason in summary.reasons:
        times = f" ({reason.count} rows)" if reason.count > 1 else ""
        line = Text(reason.status, _STYLES[reason.status]).append(f" {reason.backend}: {reason.text}{times}", "default")
        console.print(line, soft_wrap=True)
    if summary.hidden_reasons:
        console.print(f"and {summary.hidden_reasons} more reasons, in the report", highlight=False)
    if report.bits_per_byte:
        bits = ", ".join(f"{name} {value:.4f}" for name, value in report.bits_per_byte.items())
        console.print(f"Bits per byte on held-out text: {bits}", highlight=False)
    if summary.worst is not None:
        where = f"{format_share(summary.worst)}, at {format_shape(summary.worst)}"
        console.print(f"Largest error: {where}", highlight=False)
    word = "PASSED" if report else "FAILED" if summary.failed else "NOT VALIDATED"
    style = "bold green" if report else "bold red"
    console.print(Text(word, style).append(f"  {summary.counts}", "default"), soft_wrap=True)


def _build_table(report: ValidationReport) -> Table:
    """Lay the rows out so that they fit 80 columns, which is what a CI log has."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for heading in ("backend", "result"):
        table.add_column(heading, no_wrap=True)
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("masked", no_wrap=True)
    for heading in ("error", "of limit", "p50", "eager", "speedup"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(*_format_row(row))
    return table


def _format_row(row: Row) -> list[Text | str]:
    ratio = compute_error_ratio(row)
    return [
        row.backend,
        Text(row.status, _STYLES[row.status]),
        "" if row.seq_len is None else f"{row.batch}x{row.seq_len}",
        "masked" if row.masked else "",
        "" if row.max_abs_error is None else f"{row.max_abs_error:.1e}",
        "" if ratio is None else format_percent(ratio),
        "" if row.latency_ms is None else format_ms(row.latency_ms.p50),
        "" if row.eager_latency_ms is None else format_ms(row.eager_latency_ms.p50),
        "" if row.speedup is None else f"{row.speedup:.2f}x",
    ]
