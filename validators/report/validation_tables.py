"""The tables of a validation: by backend and by length, what failed, what must hold, costs, every row."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING

from flash_export.formatting import (
    capitalize,
    format_bytes,
    format_count,
    format_error,
    format_factor,
    format_known,
    format_ms,
    format_percent,
)
from flash_export.report.document import Styled, number, tabulate, text
from flash_export.validators.backends import ONNX_PREFIX
from flash_export.validators.invariances import INVARIANCES
from flash_export.validators.report.rows import (
    compute_error_ratio,
    compute_relative_limit,
    format_inputs,
    format_interval,
    format_measure,
    format_median,
    format_multiple,
    format_score,
    format_shape,
    has_noise,
    name_measure,
    select_invariances,
)
from flash_export.validators.report.summary import find_measures, find_random_measures

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flash_export.report.document import Cell, Column, Table
    from flash_export.validators.report.summary import RowGroup
    from flash_export.validators.results import Row, ValidationReport

_MAX_FAILURES = 20
_CLAIMS = {invariance.name: invariance.claim for invariance in INVARIANCES} | {
    "symbolic-shape": "the graph must declare no fixed size for an axis that may be any"
}


def describe_check(name: str) -> str:
    """Return what a check claims, as a sentence without its full stop.

    >>> describe_check("repeat")
    'The same input twice must give the same bits'
    """
    return capitalize(_CLAIMS.get(name, name))


def format_repeat(report: ValidationReport, row: Row) -> str:
    """Return the command that does one check again and nothing else; empty for a check without a name."""
    if not row.name:
        return ""
    backend = ["--backend", row.backend]
    for path in report.onnx_files:
        if row.backend == f"{ONNX_PREFIX}{PurePath(path).stem}":
            backend = ["--onnx", path]
    return shlex.join(
        ["flash-export", "validate", report.bundle, *report.arguments, *backend, "--check", row.name, "--no-latency"]
    )


def tabulate_groups(report: ValidationReport, groups: Sequence[RowGroup], *, has_lengths: bool) -> Table:
    """Return a row per group: its check that is nearest to the limit, and the time of one run at its longest length."""

    def of_worst(make: Callable[[Row], Cell]) -> Callable[[RowGroup], Cell]:
        return lambda group: None if group.worst is None else make(group.worst)

    def of_timed(make: Callable[[Row], Cell]) -> Callable[[RowGroup], Cell]:
        return lambda group: None if group.timed is None else make(group.timed)

    def measure_group(group: RowGroup) -> Cell:
        return format_measure(measure, find_measures(report, group.rows))

    measure, scores, unit = report.measures[0], report.scores, capitalize(report.unit)
    of_data = ", held-out" if find_random_measures(report) else ""
    columns: list[tuple[Column, Callable[[RowGroup], Cell]] | bool] = [
        (text("Backend"), lambda group: group.backend),
        has_lengths and (text(unit), lambda group: group.label),
        (text("Result"), lambda group: Styled(group.status, group.status)),
        (text("Checks", is_minor=True), lambda group: group.counts),
        not has_lengths and (number("Claims"), _count_claims),
        (number("Error"), of_worst(lambda row: format_known(format_error, row.max_rel_error))),
        has_noise(report.rows) and (number("Multiple", is_minor=True), of_worst(format_multiple)),
        (number("Of limit"), of_worst(_format_ratio)),
        (number(f"{capitalize(name_measure(measure))}{of_data}", is_minor=True), measure_group),
    ]
    if scores is not None and not has_lengths:
        values, score = scores.values, capitalize(scores.measure.label)
        format_one = partial(format_score, scores.measure)
        columns += [(number(score, is_minor=True), lambda group: format_known(format_one, values.get(group.backend)))]
    if any(group.timed is not None for group in groups):
        columns += [
            (number("At", is_minor=True), of_timed(_format_size)),
            (number("Time"), of_timed(lambda row: format_median(row.latency_ms))),
            (number(f"{unit}/s", is_minor=True), of_timed(lambda row: format_known(format_count, row.units_per_s))),
            (number("Speed"), of_timed(lambda row: format_known(_format_times, row.speedup))),
        ]
    return tabulate(groups, columns)


def _count_claims(group: RowGroup) -> str | None:
    """Say how many of the checks of a backend against itself hold: ``6 of 6``."""
    held = sum(row.status == "passed" for row in group.invariances)
    return f"{held} of {len(group.invariances)}" if group.invariances else None


def tabulate_failures(report: ValidationReport, failed: Sequence[Row]) -> Table:
    """Return what failed, a row per check, with the command that repeats it."""
    return tabulate(
        failed,
        [
            (text("Backend"), lambda row: row.backend),
            (text("Check"), lambda row: row.check),
            (text("Shape"), format_shape),
            (text("Reason"), lambda row: row.reason or ""),
            (text("Repeat it"), lambda row: format_repeat(report, row) or None),
        ],
        max_rows=_MAX_FAILURES,
    )


def tabulate_claims(report: ValidationReport) -> Table:
    """Return what must hold, and whether it does on each backend; None where a backend does not promise it."""
    rows = {(row.check, row.backend): row for row in select_invariances(report)}
    backends = dict.fromkeys(backend for _, backend in rows)
    return tabulate(
        dict.fromkeys(name for name, _ in rows),
        [
            (text("Claim", is_prose=True), describe_check),
            *(
                (text(backend, is_prose=True), lambda name, backend=backend: _format_claim(rows.get((name, backend))))
                for backend in backends
            ),
            (text("Check"), lambda name: name),
        ],
    )


def _format_claim(row: Row | None) -> Cell:
    if row is None:
        return None
    if row.status != "passed":
        return Styled(f"{'broken' if row.status == 'failed' else 'skipped'}: {row.reason}", row.status)
    if row.max_abs_error is None:
        return Styled("holds", "passed")
    if not row.max_abs_error:
        return Styled("holds to the bit", "passed")
    accepted = format_error(row.tolerance or 0.0)
    return Styled(f"holds, differs by {format_error(row.max_abs_error)}, {accepted} accepted", "passed")


def tabulate_footprints(report: ValidationReport) -> Table:
    """Return what each backend costs in a process of its own."""
    return tabulate(
        report.footprints,
        [
            (text("Backend"), lambda one: one.backend),
            (number("Opens in"), lambda one: format_known(format_ms, one.open_ms)),
            (number("Memory, opened", is_minor=True), lambda one: format_known(format_bytes, one.session_bytes)),
            (number("First call"), lambda one: format_known(format_ms, one.first_call_ms)),
            (number("New length costs"), lambda one: format_known(format_ms, one.shape_change_ms)),
            (number("Memory of a run"), lambda one: format_known(format_bytes, one.peak_bytes)),
            (number(f"of {report.unit}"), lambda one: format_known(str, one.peak_seq_len)),
        ],
        lambda one: one.reason,
    )


def tabulate_comparisons(report: ValidationReport, rows: Sequence[Row]) -> Table:
    """Return every comparison with the reference."""
    return tabulate(
        rows,
        [
            (text("Backend"), lambda row: row.backend),
            (text("Result"), lambda row: Styled(row.status, row.status)),
            (number("Batch"), lambda row: format_known(str, row.batch)),
            (number("Length"), lambda row: format_known(str, row.seq_len)),
            (text("Inputs"), lambda row: format_inputs(row) or "random"),
            (number("Error"), lambda row: format_known(format_error, row.max_rel_error)),
            *(
                (
                    (number("PyTorch's own"), lambda row: format_known(format_error, row.noise)),
                    (number("Multiple"), format_multiple),
                )
                if has_noise(rows)
                else ()
            ),
            (number("Limit"), lambda row: format_known(format_error, compute_relative_limit(row))),
            (number("Of limit"), _format_ratio),
            *(
                (number(capitalize(name_measure(one))), lambda row, one=one: format_measure(one, row.measures))
                for one in report.measures
            ),
        ],
        lambda row: _remark(report, row),
    )


def _remark(report: ValidationReport, row: Row) -> str:
    command = format_repeat(report, row) if row.status == "failed" else ""
    return f"{row.reason or ''}{f'; repeat it: {command}' if command else ''}"


def tabulate_timings(report: ValidationReport, rows: Sequence[Row]) -> Table:
    """Return every timing."""
    is_compiled = any(row.compiled_latency_ms for row in rows)
    return tabulate(
        [(row, row.latency_ms) for row in rows if row.latency_ms is not None],
        [
            (text("Backend"), lambda pair: pair[0].backend),
            (number("Batch"), lambda pair: str(pair[0].batch)),
            (number("Length"), lambda pair: str(pair[0].seq_len)),
            (number("Median"), lambda pair: format_ms(pair[1].p50)),
            (number("95% confidence"), lambda pair: format_interval(pair[1])),
            (number("p90"), lambda pair: format_ms(pair[1].p90)),
            (number("p99"), lambda pair: format_ms(pair[1].p99)),
            (number("Runs"), lambda pair: str(pair[1].runs)),
            (number("First run"), lambda pair: format_known(format_ms, pair[0].first_latency_ms)),
            (number("PyTorch eager"), lambda pair: format_median(pair[0].eager_latency_ms)),
            is_compiled and (number("torch.compile"), lambda pair: format_median(pair[0].compiled_latency_ms)),
            (number("Speed x eager"), lambda pair: format_known(_format_times, pair[0].speedup)),
            (number(f"{capitalize(report.unit)}/s"), lambda pair: format_known(format_count, pair[0].units_per_s)),
        ],
    )


def _format_ratio(row: Row) -> str | None:
    ratio = compute_error_ratio(row)
    return None if ratio is None else f"{format_factor(ratio)}x" if ratio >= 2 else format_percent(ratio)


def _format_size(row: Row) -> str:
    return str(row.seq_len) if row.batch == 1 else f"{row.batch} x {row.seq_len}"


def _format_times(factor: float) -> str:
    return f"{format_factor(factor)}x"
