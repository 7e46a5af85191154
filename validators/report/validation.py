"""The report of a validation: what came out, the figures that matter, and every check."""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, TypeVar

from flash_export.formatting import (
    capitalize,
    format_bytes,
    format_change,
    format_count,
    format_error,
    format_factor,
    format_length,
    format_ms,
    format_percent,
)
from flash_export.report.document import (
    Check,
    Document,
    Fact,
    Note,
    Plots,
    Section,
    Styled,
    number,
    tabulate,
    text,
)
from flash_export.validators.backends import ONNX_PREFIX
from flash_export.validators.invariances import INVARIANCES
from flash_export.validators.lengths import RECORDED
from flash_export.validators.report.reading import explain_validation
from flash_export.validators.report.rows import (
    compute_error_ratio,
    compute_relative_limit,
    find_worst,
    format_inputs,
    format_interval,
    format_measure,
    format_multiple,
    format_score,
    format_shape,
    format_share,
    has_noise,
    name_measure,
    select_comparisons,
    select_invariances,
)
from flash_export.validators.report.summary import (
    count_statuses,
    find_fastest,
    find_measures,
    find_random_measures,
    group_by_backend,
    group_by_length,
    phrase_loss,
    phrase_verdict,
)
from flash_export.validators.report.validation_plots import build_error_plot, build_latency_plot
from flash_export.validators.results import ACCURACY, EAGER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from flash_export.report.document import Cell, Column, Table
    from flash_export.tasks.base import Measure
    from flash_export.validators.latency import Percentiles
    from flash_export.validators.report.summary import RowGroup
    from flash_export.validators.results import Row, ValidationReport


Value = TypeVar("Value")
_MAX_NOTES = 6  # of those that failed, and of those that were skipped
_MAX_FAILURES = 20
_NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")
_CLAIMS = {invariance.name: invariance.claim for invariance in INVARIANCES} | {
    "symbolic-shape": "the graph must declare no fixed size for an axis that may be any"
}


def describe_validation(report: ValidationReport) -> Document:
    """Return the report of a validation."""
    backends = group_by_backend(report.rows)
    plan = report.environment.get("plan")
    return Document(
        subject=f"Validation of {report.bundle}{f', plan {plan}' if plan else ''}",
        command="flash-export validate",
        headline=phrase_verdict(report, backends),
        status="passed" if report else "failed" if report.count("failed") else "skipped",
        word="PASSED" if report else "FAILED" if report.count("failed") else "NOT VALIDATED",
        counts=count_statuses(report.rows),
        alarms=report.diagnosis,
        lead=_phrase_lead(report, backends),
        caveats=(report.caveat,) if report.caveat else (),
        facts=tuple(_list_facts(report, backends)),
        notes=tuple(_list_notes(report)),
        sections=tuple(_list_sections(report, backends)),
        checks=tuple(map(_make_check, report.rows)),
        environment=(("bundle", report.bundle), *report.environment.items()),
    )


def describe_check(name: str) -> str:
    """Return what a check claims, as a sentence without its full stop.

    >>> describe_check("repeat")
    'The same input twice must give the same bits'
    """
    return capitalize(_CLAIMS.get(name, name))


def _phrase_lead(report: ValidationReport, backends: Sequence[RowGroup]) -> str:
    compared = [row for row in select_comparisons(report) if compute_error_ratio(row) is not None]
    lengths = sorted({row.seq_len for row in compared if row.seq_len})
    if not lengths:
        return ""
    names = ", ".join(one.backend for one in backends if one.status != "skipped")
    inputs = "random inputs and held-out data" if any(row.inputs == RECORDED for row in compared) else "random inputs"
    length = format_length(lengths[-1], report.unit)
    span = f"{lengths[0]} to {length}" if len(lengths) > 1 else length
    batches = " and ".join(map(str, sorted({row.batch for row in compared if row.batch})))
    padding = ", with and without padding" if any(row.masked for row in compared) else ""
    return (
        f"The original PyTorch model and the exported one ({names}) got the same {inputs}, {span} long, in batches of "
        f"{batches}{padding}."
    )


def _list_facts(report: ValidationReport, backends: Sequence[RowGroup]) -> Iterator[Fact]:
    if report.is_quantized:
        yield from _list_score_facts(report)
    if (worst := find_worst(select_comparisons(report))) is not None:
        multiple = format_multiple(worst)
        own = f"{multiple} PyTorch's own error in {report.environment.get('precision', 'this precision')}, "
        if worst.max_rel_error is None:
            size = (
                f"{format_error(worst.max_abs_error or 0.0)} where {format_error(worst.tolerance or 0.0)} is accepted"
            )
        else:
            size = f"{format_error(worst.max_rel_error)} of the largest output"
        yield Fact("Largest error", format_share(worst), f"{own if multiple else ''}{size}, at {format_shape(worst)}")
    measures = find_measures(report, report.rows)
    if known := [measure for measure in report.measures if measure.name in measures]:
        first, others = known[0], known[1:]
        random = find_random_measures(report)
        where = f"{'of held-out data, ' if random else ''}in the worst check"
        rest = "".join(f"; {measure.label} {measure.format(measures[measure.name])}" for measure in others)
        on_random = f"; {first.format(random[first.name])} of random inputs" if first.name in random else ""
        value = first.format(measures[first.name])
        yield Fact(capitalize(first.label), value, f"{where}{rest}{on_random}")
    if not report.is_quantized:
        yield from _list_score_facts(report)
    fastest = find_fastest(backends)
    row = None if fastest is None else fastest.timed
    if fastest is not None and row is not None and row.latency_ms is not None and row.speedup is not None:
        yield Fact(
            f"Speed at {format_length(row.seq_len or 0, report.unit)}",
            f"{format_factor(row.speedup)}x PyTorch's",
            _describe_speed(report, fastest, row),
        )


def _list_score_facts(report: ValidationReport) -> Iterator[Fact]:
    scores = report.scores
    if scores is None or len(scores.values) < 2:
        return
    dearest = max((name for name in scores.values if name != EAGER), key=scores.compute_loss)
    score, own = (format_score(scores.measure, scores.values[name]) for name in (dearest, EAGER))
    loss, accepted = report.score_loss, report.environment.get("accepted_loss")
    own = f"PyTorch has {own} on the same held-out data"
    label = f"{capitalize(scores.measure.label)}, {dearest}"
    if not report.is_quantized or loss is None:
        yield Fact(label, score, own)
    else:
        limit = f"; +{accepted} is accepted" if accepted else ""
        yield Fact(label, format_change(loss), f"{score}, {phrase_loss(scores.measure, loss)}; {own}{limit}")


def _describe_speed(report: ValidationReport, backend: RowGroup, row: Row) -> str:
    assert row.latency_ms is not None
    speedups = [one.speedup for one in backend.rows if one.speedup is not None]
    parts = [f"{backend.backend} takes {format_ms(row.latency_ms.p50)} ({format_interval(row.latency_ms)})"]
    if row.units_per_s is not None:
        parts[0] += f", {format_count(row.units_per_s)} {report.unit}/s"
    if row.eager_latency_ms is not None and row.latency_ms.overlaps(row.eager_latency_ms):
        parts.append("the 95% intervals of both overlap")
    if row.compiled_latency_ms is not None:
        parts.append(f"torch.compile takes {format_ms(row.compiled_latency_ms.p50)}")
    parts.append(f"{format_factor(min(speedups))}x to {format_factor(max(speedups))}x over all shapes")
    return "; ".join(parts)


def _list_notes(report: ValidationReport) -> Iterator[Note]:
    """Yield why rows failed or were skipped, those whose reasons differ in nothing but numbers together.

    Of what failed, rows of one backend alone; what was skipped for the same reason is told once for all backends.
    """
    alike: dict[tuple[str, ...], list[Row]] = {}
    for row in report.rows:
        if row.reason and row.status != "passed":
            who = row.backend if row.status == "failed" else ""
            alike.setdefault((row.status, who, _NUMBER.sub("#", row.reason)), []).append(row)
    hidden = 0
    for status in ("failed", "skipped"):
        groups = [rows for rows in alike.values() if rows[0].status == status]
        for index, rows in enumerate(groups):
            worst = find_worst(rows)
            worst = rows[0] if worst is None else worst  # a row that failed is false
            if index >= _MAX_NOTES and worst.seq_len is not None:
                hidden += 1
                continue
            where = "" if worst.seq_len is None else format_shape(worst)
            if where and len(rows) > 1:
                where += f", and {len(rows) - 1} like it"
            who = " and ".join(dict.fromkeys(row.backend for row in rows))
            command = format_repeat(report, worst) if status == "failed" else ""
            yield Note(str(worst.reason), worst.status, who, where, command)
    if hidden:
        yield Note(f"and {hidden} more reasons", "soft")


def _list_sections(report: ValidationReport, backends: Sequence[RowGroup]) -> Iterator[Section]:
    comparisons = [row for row in select_comparisons(report) if row.seq_len is not None]
    timings = [row for row in comparisons if row.latency_ms is not None]
    plots = (build_error_plot(report), build_latency_plot(report))
    yield Section("", Plots(tuple(plot for plot in plots if plot is not None)), views=("page",))
    nearest = (
        "The check of each that is nearest to its limit, and the time of one run at its longest length. Errors are "
        "fractions of the largest output, speed is a multiple of PyTorch's own."
    )
    tried = [group for one in backends if one.status != "skipped" for group in group_by_length(one)]
    yield Section("By length", _tabulate_groups(report, tried, has_lengths=True), views=("terminal",))
    yield Section("By backend", _tabulate_groups(report, backends, has_lengths=False), nearest)
    failed = [row for row in report.rows if row.status == "failed"]
    yield Section("What failed", _tabulate_failures(report, failed), views=("markdown",))
    yield Section(
        "What must hold of any model",
        _tabulate_claims(report),
        "Here a backend is compared with itself: two runs that must agree, whatever the model computes.",
        views=("page", "markdown"),
        is_folded=True,
    )
    yield Section(
        "In a fresh process",
        _tabulate_footprints(report),
        "What a server pays that opens this backend and nothing else: the first call, a length it has not seen, and "
        "memory.",
        is_folded=True,
    )
    yield Section("How to read this", explain_validation(report, has_times=bool(timings)), views=("page",))
    yield Section(
        "Every comparison",
        _tabulate_comparisons(report, comparisons),
        "Errors and limits are fractions of the largest output.",
        views=("page",),
    )
    yield Section(
        "Every timing",
        _tabulate_timings(report, timings),
        "Times are for one run. The first run at a shape includes whatever the backend prepares for it.",
        views=("page",),
    )


def _tabulate_groups(report: ValidationReport, groups: Sequence[RowGroup], *, has_lengths: bool) -> Table:
    """Return a row a group: its check that is nearest to the limit, and the time of one run at its longest length."""

    def of_worst(make: Callable[[Row], Cell]) -> Callable[[RowGroup], Cell]:
        return lambda group: None if group.worst is None else make(group.worst)

    def of_timed(make: Callable[[Row], Cell]) -> Callable[[RowGroup], Cell]:
        return lambda group: None if group.timed is None else make(group.timed)

    def measure_group(group: RowGroup) -> Cell:
        return _format_measure(measure, find_measures(report, group.rows))

    measure, scores, unit = report.measures[0], report.scores, capitalize(report.unit)
    of_data = ", held-out" if find_random_measures(report) else ""
    columns: list[tuple[Column, Callable[[RowGroup], Cell]] | bool] = [
        (text("Backend"), lambda group: group.backend),
        has_lengths and (text(unit), lambda group: group.label),
        (text("Result"), lambda group: Styled(group.status, group.status)),
        (text("Checks", is_minor=True), lambda group: group.counts),
        not has_lengths and (number("Claims"), _count_claims),
        (number("Error"), of_worst(lambda row: _or_none(format_error, row.max_rel_error))),
        has_noise(report.rows) and (number("Multiple", is_minor=True), of_worst(format_multiple)),
        (number("Of limit"), of_worst(_format_ratio)),
        (number(f"{capitalize(name_measure(measure))}{of_data}", is_minor=True), measure_group),
    ]
    if scores is not None and not has_lengths:
        values, score = scores.values, capitalize(scores.measure.label)
        format_one = partial(format_score, scores.measure)
        columns += [(number(score, is_minor=True), lambda group: _or_none(format_one, values.get(group.backend)))]
    if any(group.timed is not None for group in groups):
        columns += [
            (number("At", is_minor=True), of_timed(_format_size)),
            (number("Time"), of_timed(lambda row: _format_median(row.latency_ms))),
            (number(f"{unit}/s", is_minor=True), of_timed(lambda row: _or_none(format_count, row.units_per_s))),
            (number("Speed"), of_timed(lambda row: _or_none(_format_times, row.speedup))),
        ]
    return tabulate(groups, columns)


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


def _count_claims(group: RowGroup) -> str | None:
    """Say how many of the checks of a backend against itself hold: ``6 of 6``."""
    held = sum(row.status == "passed" for row in group.invariances)
    return f"{held} of {len(group.invariances)}" if group.invariances else None


def _tabulate_failures(report: ValidationReport, failed: Sequence[Row]) -> Table:
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


def _tabulate_claims(report: ValidationReport) -> Table:
    """Return what must hold, and whether it does on each backend; None where a backend does not promise it."""
    rows = {(row.check, row.backend): row for row in select_invariances(report)}
    backends = dict.fromkeys(backend for _, backend in rows)
    return tabulate(
        dict.fromkeys(name for name, _ in rows),
        [
            (text("Claim", is_prose=True), describe_check),
            (text("Check"), lambda name: name),
            *(
                (text(backend, is_prose=True), lambda name, backend=backend: _format_claim(rows.get((name, backend))))
                for backend in backends
            ),
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


def _tabulate_footprints(report: ValidationReport) -> Table:
    return tabulate(
        report.footprints,
        [
            (text("Backend"), lambda one: one.backend),
            (number("Opens in"), lambda one: _or_none(format_ms, one.open_ms)),
            (number("Memory, opened", is_minor=True), lambda one: _or_none(format_bytes, one.session_bytes)),
            (number("First call"), lambda one: _or_none(format_ms, one.first_call_ms)),
            (number("New length costs"), lambda one: _or_none(format_ms, one.shape_change_ms)),
            (number("Memory of a run"), lambda one: _or_none(format_bytes, one.peak_bytes)),
            (number(f"of {report.unit}"), lambda one: _or_none(str, one.peak_seq_len)),
        ],
        lambda one: one.reason,
    )


def _tabulate_comparisons(report: ValidationReport, rows: Sequence[Row]) -> Table:
    return tabulate(
        rows,
        [
            (text("Backend"), lambda row: row.backend),
            (text("Result"), lambda row: Styled(row.status, row.status)),
            (number("Batch"), lambda row: _or_none(str, row.batch)),
            (number("Length"), lambda row: _or_none(str, row.seq_len)),
            (text("Inputs"), lambda row: format_inputs(row) or "random"),
            (number("Error"), lambda row: _or_none(format_error, row.max_rel_error)),
            *(
                (
                    (number("PyTorch's own"), lambda row: _or_none(format_error, row.noise)),
                    (number("Multiple"), format_multiple),
                )
                if has_noise(rows)
                else ()
            ),
            (number("Limit"), lambda row: _or_none(format_error, compute_relative_limit(row))),
            (number("Of limit"), _format_ratio),
            *(
                (
                    number(capitalize(name_measure(measure))),
                    lambda row, measure=measure: _format_measure(measure, row.measures),
                )
                for measure in report.measures
            ),
        ],
        lambda row: _remark(report, row),
    )


def _remark(report: ValidationReport, row: Row) -> str:
    command = format_repeat(report, row) if row.status == "failed" else ""
    return f"{row.reason or ''}{f'; repeat it: {command}' if command else ''}"


def _tabulate_timings(report: ValidationReport, rows: Sequence[Row]) -> Table:
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
            (number("First run"), lambda pair: _or_none(format_ms, pair[0].first_latency_ms)),
            (number("PyTorch eager"), lambda pair: _format_median(pair[0].eager_latency_ms)),
            is_compiled and (number("torch.compile"), lambda pair: _format_median(pair[0].compiled_latency_ms)),
            (number("Speed x eager"), lambda pair: _or_none(_format_times, pair[0].speedup)),
            (number(f"{capitalize(report.unit)}/s"), lambda pair: _or_none(format_count, pair[0].units_per_s)),
        ],
    )


def _make_check(row: Row) -> Check:
    claim = "" if row.check == ACCURACY else f"{describe_check(row.check)}: "
    seconds = row.latency_ms.p50 / 1e3 if row.latency_ms else 0.0
    return Check(row.backend, row.check, f"{claim}{format_shape(row)}", row.status, row.reason or "", seconds)


def _or_none(format_value: Callable[[Value], str], value: Value | None) -> str | None:
    return None if value is None else format_value(value)


def _format_median(latency: Percentiles | None) -> str | None:
    return None if latency is None else format_ms(latency.p50)


def _format_measure(measure: Measure, measures: Mapping[str, float]) -> str | None:
    return format_measure(measure, measures[measure.name]) if measure.name in measures else None


def _format_ratio(row: Row) -> str | None:
    ratio = compute_error_ratio(row)
    return None if ratio is None else f"{format_factor(ratio)}x" if ratio >= 2 else format_percent(ratio)


def _format_size(row: Row) -> str:
    return str(row.seq_len) if row.batch == 1 else f"{row.batch} x {row.seq_len}"


def _format_times(factor: float) -> str:
    return f"{format_factor(factor)}x"
