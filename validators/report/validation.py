"""The report of a validation: what came out, the figures that matter, and every check."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from flash_export.formatting import (
    capitalize,
    format_change,
    format_count,
    format_error,
    format_factor,
    format_length,
    format_ms,
)
from flash_export.report.document import Check, Document, Fact, Note, Plots, Section
from flash_export.validators.lengths import RECORDED
from flash_export.validators.report.reading import explain_validation
from flash_export.validators.report.rows import (
    compute_error_ratio,
    find_worst,
    format_interval,
    format_multiple,
    format_score,
    format_shape,
    format_share,
    select_comparisons,
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
from flash_export.validators.report.validation_tables import (
    describe_check,
    format_repeat,
    tabulate_claims,
    tabulate_comparisons,
    tabulate_failures,
    tabulate_footprints,
    tabulate_groups,
    tabulate_timings,
)
from flash_export.validators.results import ACCURACY, EAGER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flash_export.validators.report.summary import RowGroup
    from flash_export.validators.results import Row, ValidationReport

_MAX_NOTES = 6  # of those that failed, and of those that were skipped
_NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")


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
        caveats=report.caveats,
        facts=tuple(_list_facts(report, backends)),
        notes=tuple(_list_notes(report)),
        sections=tuple(_list_sections(report, backends)),
        checks=tuple(map(_make_check, report.rows)),
        environment=(("bundle", report.bundle), *report.environment.items()),
    )


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
    code = report.environment.get("original")
    original = f"original model, {code}," if code else "original PyTorch model"
    return (
        f"The {original} and the exported one ({names}) got the same {inputs}, {span} long, in batches of "
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
    yield Section("By length", tabulate_groups(report, tried, has_lengths=True), views=("terminal",))
    yield Section("By backend", tabulate_groups(report, backends, has_lengths=False), nearest)
    failed = [row for row in report.rows if row.status == "failed"]
    yield Section("What failed", tabulate_failures(report, failed), views=("markdown",))
    yield Section(
        "What must hold of any model",
        tabulate_claims(report),
        "Here a backend is compared with itself: two runs that must agree, whatever the model computes.",
        views=("page", "markdown"),
        is_folded=True,
    )
    yield Section(
        "In a fresh process",
        tabulate_footprints(report),
        "What a server pays that opens this backend and nothing else: the first call, a length it has not seen, and "
        "memory.",
        is_folded=True,
    )
    yield Section("How to read this", explain_validation(report, has_times=bool(timings)), views=("page",))
    yield Section(
        "Every comparison",
        tabulate_comparisons(report, comparisons),
        "Errors and limits are fractions of the largest output.",
        views=("page",),
    )
    yield Section(
        "Every timing",
        tabulate_timings(report, timings),
        "Times are for one run. The first run at a shape includes whatever the backend prepares for it.",
        views=("page",),
    )


def _make_check(row: Row) -> Check:
    claim = "" if row.check == ACCURACY else f"{describe_check(row.check)}: "
    seconds = row.latency_ms.p50 / 1e3 if row.latency_ms else 0.0
    return Check(row.backend, row.check, f"{claim}{format_shape(row)}", row.status, row.reason or "", seconds)
