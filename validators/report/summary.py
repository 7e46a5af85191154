"""What a report says in a few sentences, for the terminal and for the top of a page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.validators.plan import RECORDED
from flash_export.validators.report.by_backend import BackendSummary, summarize_backend
from flash_export.validators.report.formatting import format_shape, name_measure
from flash_export.validators.report.measures import (
    compute_error_ratio,
    find_worst,
    find_worst_measures,
    select_comparisons,
)
from flash_export.validators.report.verdict import phrase_verdict

if TYPE_CHECKING:
    from flash_export.validators.results import Row, Status, ValidationReport

_SHOWN_REASONS = 6
_NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")


@dataclass(frozen=True)
class Reason:
    """Why rows failed, or were skipped: those whose reasons differ in nothing but numbers.

    Of what failed, rows of one backend alone; what was skipped for the same reason is told once for all backends.

    Attributes:
        status: ``failed`` or ``skipped``.
        backends: Names of the backends.
        text: The reason of the worst of them.
        shape: Its shape; None for a backend that was not tried at all.
        count: How many there are.
    """

    status: Status
    backends: tuple[str, ...]
    text: str
    shape: str | None
    count: int

    @property
    def who(self) -> str:
        """``ort-cuda and stream:ort-cuda``."""
        return " and ".join(self.backends)

    @property
    def where(self) -> str:
        """``batch 1, length 257, and 31 like it``; nothing where no shape was tried."""
        if self.shape is None:
            return ""
        others = f"{self.count - 1} like it" if self.count > 1 else ""
        return f"{self.shape}, and {others}" if others else self.shape


@dataclass(frozen=True)
class Summary:
    """The few facts that a reader wants first.

    Attributes:
        verdict: One plain sentence.
        word: ``PASSED``, ``FAILED`` or ``NOT VALIDATED``.
        passed: Rows that passed.
        failed: Rows that failed.
        skipped: Rows that were skipped.
        backends: The same and more for each backend, in the order of the report.
        worst: The comparison whose error is the largest fraction of its tolerance.
        measures: The worst of what the task measures, over all backends, by name.
        dearest: The backend with the worst score on held-out data; None without such scores.
        random_measures: The worst of what the task measures on random inputs, where that of the backends is of held-out
            data alone; else empty.
        reasons: Why rows failed or were skipped, failures first; the first few of each.
        hidden_reasons: Number of further reasons.
        batches: Batch sizes that were compared.
        lengths: Lengths that were compared.
        any_masked: Whether any of them was masked.
        any_recorded: Whether any of them was held-out data.
    """

    verdict: str
    word: str
    passed: int
    failed: int
    skipped: int
    backends: tuple[BackendSummary, ...]
    worst: Row | None
    dearest: BackendSummary | None
    measures: dict[str, float]
    random_measures: dict[str, float]
    reasons: tuple[Reason, ...]
    hidden_reasons: int
    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    any_masked: bool
    any_recorded: bool

    @property
    def total(self) -> int:
        """Number of rows."""
        return self.passed + self.failed + self.skipped

    @property
    def counts(self) -> str:
        """``76 passed, 0 failed, 2 skipped``."""
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"

    @property
    def tried(self) -> tuple[BackendSummary, ...]:
        """The backends that were not skipped as a whole."""
        return tuple(one for one in self.backends if one.is_tried)

    @property
    def fastest(self) -> BackendSummary | None:
        """The fastest backend at the longest length that was timed, a right one if there is any; None if none was."""
        timed = [(one.timed, one) for one in self.backends if one.timed is not None]
        ranked = [((not one.failed, row.seq_len or 0, row.speedup or 0.0), one) for row, one in timed]
        return max(ranked, key=lambda pair: pair[0])[1] if ranked else None


def summarize(report: ValidationReport) -> Summary:
    """Boil a report down."""
    comparisons = select_comparisons(report)
    compared = [row for row in comparisons if compute_error_ratio(row) is not None]
    backends = tuple(summarize_backend(report, name) for name in dict.fromkeys(row.backend for row in report.rows))
    scores = report.scores
    scored = [one for one in backends if one.score is not None]
    reasons = _collect_reasons(report)
    shown = [
        reason
        for status in ("failed", "skipped")
        for index, reason in enumerate(one for one in reasons if one.status == status)
        if index < _SHOWN_REASONS or reason.shape is None
    ]
    return Summary(
        verdict=phrase_verdict(report, backends),
        word="PASSED" if report else "FAILED" if report.count("failed") else "NOT VALIDATED",
        passed=report.count("passed"),
        failed=report.count("failed"),
        skipped=report.count("skipped"),
        backends=backends,
        worst=find_worst(comparisons),
        measures=find_worst_measures(report.measures, [one.measures for one in backends]),
        dearest=None if scores is None else max(scored, key=lambda one: scores.compute_loss(one.name), default=None),
        random_measures=_find_random_measures(report, comparisons),
        reasons=tuple(shown),
        hidden_reasons=len(reasons) - len(shown),
        batches=tuple(sorted({row.batch for row in compared if row.batch})),
        lengths=tuple(sorted({row.seq_len for row in compared if row.seq_len})),
        any_masked=any(row.masked for row in compared),
        any_recorded=any(row.inputs == RECORDED for row in compared),
    )


def name_agreement(report: ValidationReport) -> str:
    """Return the heading of the first of the task's measures, and of what data it is."""
    is_of_data = bool(_find_random_measures(report, select_comparisons(report)))
    return f"{name_measure(report.measures[0])}{', held-out' if is_of_data else ''}"


def _find_random_measures(report: ValidationReport, comparisons: list[Row]) -> dict[str, float]:
    if not (report.is_quantized and any(row.inputs == RECORDED and row.measures for row in comparisons)):
        return {}
    return find_worst_measures(report.measures, [row.measures for row in comparisons if row.inputs != RECORDED])


def _collect_reasons(report: ValidationReport) -> list[Reason]:
    alike: dict[tuple[str, ...], list[Row]] = {}
    for row in report.rows:
        if row.reason and row.status != "passed":
            who = row.backend if row.status == "failed" else ""
            alike.setdefault((row.status, who, _NUMBER.sub("#", row.reason)), []).append(row)
    reasons = []
    for rows in alike.values():
        worst = find_worst(rows)
        worst = rows[0] if worst is None else worst
        shape = None if worst.seq_len is None else format_shape(worst)
        names = tuple(dict.fromkeys(row.backend for row in rows))
        reasons.append(Reason(worst.status, names, str(worst.reason), shape, len(rows)))
    return reasons
