"""What changed from one validation to another: verdicts, errors, scores, latencies, memory, and where they ran.

Only what the two reports can tell apart is a change. Errors are compared against the eager model's own error, latencies
by the intervals that hold their medians; those of quantized bundles, which have no such error, in hundredths.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from flash_export.strict_json import format_json
from flash_export.validators.latency import Percentiles  # noqa: TC001 (its fields are read as a schema)
from flash_export.validators.results import Row, Status, ValidationReport  # noqa: TC001

if TYPE_CHECKING:
    from collections.abc import Iterable

    Key = tuple[str, str, str, int | None, int | None, bool]

# Two runs of the same graph differ by less; of scores four digits are shown.
_MEMORY_CHANGE = 0.1
_SCORE_CHANGE = 5e-5
# In place of the eager model's own error, where there is none: what two runs of a quantized graph may differ by.
_UNKNOWN_NOISE = 0.02
# Differs from run to run and says nothing.
_IGNORED_FACTS = ("created",)
_SEVERITY: tuple[Status, ...] = ("failed", "passed", "skipped")


@dataclass(frozen=True)
class VerdictChange:
    """A check that came out differently; ``before`` is None where only the second run had it, and it failed."""

    row: Row
    before: Status | None

    @property
    def is_regression(self) -> bool:
        """Whether it fails now and passed before."""
        return self.before == "passed" and self.row.status == "failed"


@dataclass(frozen=True)
class ErrorChange:
    """An error that moved by more than the eager model's own; ``factor`` is above 1 where it grew.

    Attributes:
        row: The check in the second run.
        before: Error as a fraction of the output's scale in the first run.
        after: In the second.
    """

    row: Row
    before: float
    after: float

    @property
    def factor(self) -> float | None:
        """How many times the error of before it is; None if that was 0."""
        return self.after / self.before if self.before else None


@dataclass(frozen=True)
class LatencyChange:
    """A latency whose interval lies wholly on one side of the other run's.

    Attributes:
        row: The check in the second run.
        old: Latency in the first run.
        new: In the second.
        eager_factor: How many times the time of before the eager model takes, timed in turn with the backend: where
            that is near ``factor``, it is the machine that changed.
    """

    row: Row
    old: Percentiles
    new: Percentiles
    eager_factor: float | None

    @property
    def factor(self) -> float:
        """How many times the time of before it takes: above 1 it is slower."""
        return self.new.p50 / self.old.p50

    @property
    def is_slower(self) -> bool:
        """Whether it takes longer than before."""
        return self.factor > 1


@dataclass(frozen=True)
class ValueChange:
    """A named value that differs: a fact of the environment, a score, bytes of memory; None: it is not there."""

    name: str
    before: str | float | None
    after: str | float | None


@dataclass(frozen=True)
class Comparison:
    """What changed; true unless the second run fails where the first passed.

    Attributes:
        before: The first report.
        after: The second.
        verdicts: Checks that came out differently, and failures of checks that are new.
        errors: Errors that moved beyond the noise, the largest growth first.
        latencies: Latencies that are certainly other than before.
        scores: On held-out data, by backend.
        memory: Peak memory of a run by backend, in bytes, where it moved by more than 10 %.
        environment: Facts that differ.
        dropped: Checks by backend that only the first run had.
        added: Checks by backend that only the second run had.
        shared: Number of checks that both had.
    """

    before: ValidationReport
    after: ValidationReport
    verdicts: tuple[VerdictChange, ...]
    errors: tuple[ErrorChange, ...]
    latencies: tuple[LatencyChange, ...]
    scores: tuple[ValueChange, ...]
    memory: tuple[ValueChange, ...]
    environment: tuple[ValueChange, ...]
    dropped: dict[str, int]
    added: dict[str, int]
    shared: int

    @property
    def regressions(self) -> tuple[VerdictChange, ...]:
        """Checks that passed and fail now."""
        return tuple(change for change in self.verdicts if change.is_regression)

    def __bool__(self) -> bool:
        return not self.regressions and (self.after.passed or not self.before.passed)

    def to_json(self) -> str:
        """Return strict JSON; of the two reports, which bundles they are of and what they said."""
        reports = {
            name: {"bundle": report.bundle, "passed": report.passed}
            for name, report in (("before", self.before), ("after", self.after))
        }
        changes = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in reports}
        return format_json({"passed": bool(self), **reports, **changes})


def compare_reports(before: ValidationReport, after: ValidationReport) -> Comparison:
    """Compare two validations, check by check: same backend, same check, same inputs and shape."""
    old, new = _index(before.rows), _index(after.rows)
    pairs = [(old[key], new[key]) for key in new if key in old]
    fresh = [row for key, row in new.items() if key not in old]
    verdicts = [VerdictChange(row, was.status) for was, row in pairs if row.status != was.status]
    verdicts += [VerdictChange(row, None) for row in fresh if row.status == "failed"]
    errors = list(filter(None, (_compare_errors(was, row) for was, row in pairs)))
    return Comparison(
        before=before,
        after=after,
        verdicts=tuple(sorted(verdicts, key=lambda change: not change.is_regression)),
        errors=tuple(sorted(errors, key=lambda change: -(change.after - change.before))),
        latencies=tuple(filter(None, (_compare_latencies(was, row) for was, row in pairs))),
        scores=_compare_values(_list_scores(before), _list_scores(after), _SCORE_CHANGE, 0.0),
        memory=_compare_values(_list_memory(before), _list_memory(after), 0.0, _MEMORY_CHANGE),
        environment=tuple(
            ValueChange(name, before.environment.get(name), after.environment.get(name))
            for name in dict.fromkeys((*before.environment, *after.environment))
            if name not in _IGNORED_FACTS and before.environment.get(name) != after.environment.get(name)
        ),
        dropped=_count_backends(row for key, row in old.items() if key not in new),
        added=_count_backends(fresh),
        shared=len(pairs),
    )


def _index(rows: Iterable[Row]) -> dict[Key, Row]:
    """Return rows by what they check; of two that check the same, the one that failed."""
    found: dict[Key, Row] = {}
    for row in rows:
        key = (row.backend, row.check, row.inputs, row.batch, row.seq_len, row.masked)
        if key not in found or _SEVERITY.index(row.status) < _SEVERITY.index(found[key].status):
            found[key] = row
    return found


def _compare_errors(before: Row, after: Row) -> ErrorChange | None:
    if before.max_rel_error is None or after.max_rel_error is None:
        return None
    noises = [_UNKNOWN_NOISE if row.noise is None else row.noise for row in (before, after)]
    if abs(after.max_rel_error - before.max_rel_error) <= max(noises):
        return None
    return ErrorChange(after, before.max_rel_error, after.max_rel_error)


def _compare_latencies(before: Row, after: Row) -> LatencyChange | None:
    old, new = before.latency_ms, after.latency_ms
    if old is None or new is None or new.overlaps(old):
        return None
    eager = before.eager_latency_ms, after.eager_latency_ms
    return LatencyChange(after, old, new, eager[1].p50 / eager[0].p50 if eager[0] and eager[1] else None)


def _compare_values(
    before: dict[str, float], after: dict[str, float], absolute: float, relative: float
) -> tuple[ValueChange, ...]:
    """Return the values that both have and that differ by more than is accepted."""
    return tuple(
        ValueChange(name, before[name], after[name])
        for name in after
        if name in before and abs(after[name] - before[name]) > absolute + relative * abs(before[name])
    )


def _list_scores(report: ValidationReport) -> dict[str, float]:
    return {} if report.scores is None else report.scores.values


def _list_memory(report: ValidationReport) -> dict[str, float]:
    """Return the peak memory of a run by backend and length: that of another length is another number."""
    return {
        f"{one.backend} at {one.peak_seq_len} {report.unit}": float(one.peak_bytes)
        for one in report.footprints
        if one.peak_bytes is not None
    }


def _count_backends(rows: Iterable[Row]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.backend] = counts.get(row.backend, 0) + 1
    return counts
