"""What a report says in a few sentences, for the terminal and for the top of a page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.validators.plan import TEXT
from flash_export.validators.report.by_backend import BackendSummary, summarize_backend
from flash_export.validators.report.formatting import format_shape
from flash_export.validators.report.measures import compute_error_ratio, find_worst, select_comparisons

if TYPE_CHECKING:
    from flash_export.validators.results import Row, Status, ValidationReport

_SHOWN_REASONS = 6
_NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")


@dataclass(frozen=True)
class Reason:
    """Why rows of a backend failed or were skipped: those whose reasons differ in nothing but numbers.

    Attributes:
        status: ``failed`` or ``skipped``.
        backend: Name of the backend.
        text: The reason of the worst of them.
        shape: Its shape; None for a backend that was not tried at all.
        count: How many there are.
    """

    status: Status
    backend: str
    text: str
    shape: str | None
    count: int

    @property
    def where(self) -> str:
        """``batch 1, length 257, and 31 like it``."""
        others = f"{self.count - 1} like it" if self.count > 1 else ""
        return ", and ".join(part for part in (self.shape, others) if part)


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
        furthest_bits: The backend whose bits per byte are the furthest from the eager model's; None without such bits.
        reasons: Why rows failed or were skipped, failures first; the first few of each.
        hidden_reasons: Number of further reasons.
        batches: Batch sizes that were compared.
        lengths: Lengths that were compared.
        any_masked: Whether any of them was masked.
        any_text: Whether any of them was held-out text.
    """

    verdict: str
    word: str
    passed: int
    failed: int
    skipped: int
    backends: tuple[BackendSummary, ...]
    worst: Row | None
    furthest_bits: BackendSummary | None
    reasons: tuple[Reason, ...]
    hidden_reasons: int
    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    any_masked: bool
    any_text: bool

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

    @property
    def lowest_agreement(self) -> float | None:
        """Smallest share of positions, over all comparisons, whose most likely token is the reference's."""
        return min((one.lowest_agreement for one in self.backends if one.lowest_agreement is not None), default=None)

    @property
    def highest_kl_bits(self) -> float | None:
        """Largest divergence over all comparisons."""
        return max((one.highest_kl_bits for one in self.backends if one.highest_kl_bits is not None), default=None)


def summarize(report: ValidationReport) -> Summary:
    """Boil a report down."""
    comparisons = select_comparisons(report)
    compared = [row for row in comparisons if compute_error_ratio(row) is not None]
    backends = tuple(summarize_backend(report, name) for name in dict.fromkeys(row.backend for row in report.rows))
    reasons = _collect_reasons(report)
    shown = [
        reason
        for status in ("failed", "skipped")
        for reason in [one for one in reasons if one.status == status][:_SHOWN_REASONS]
    ]
    return Summary(
        verdict=_phrase_verdict(report, backends),
        word="PASSED" if report else "FAILED" if report.count("failed") else "NOT VALIDATED",
        passed=report.count("passed"),
        failed=report.count("failed"),
        skipped=report.count("skipped"),
        backends=backends,
        worst=find_worst(comparisons),
        furthest_bits=_find_furthest_bits(report, backends),
        reasons=tuple(shown),
        hidden_reasons=len(reasons) - len(shown),
        batches=tuple(sorted({row.batch for row in compared if row.batch})),
        lengths=tuple(sorted({row.seq_len for row in compared if row.seq_len})),
        any_masked=any(row.masked for row in compared),
        any_text=any(row.inputs == TEXT for row in compared),
    )


def _find_furthest_bits(report: ValidationReport, backends: tuple[BackendSummary, ...]) -> BackendSummary | None:
    bits = report.bits_per_byte or {}
    known = [one for one in backends if one.bits_per_byte is not None and "eager" in bits]
    return max(known, key=lambda one: abs(bits[one.name] - bits["eager"]), default=None)


def _collect_reasons(report: ValidationReport) -> list[Reason]:
    alike: dict[tuple[Status, str, str], list[Row]] = {}
    for row in report.rows:
        if row.reason and row.status != "passed":
            alike.setdefault((row.status, row.backend, _NUMBER.sub("#", row.reason)), []).append(row)
    reasons = []
    for (status, backend, _), rows in alike.items():
        worst = find_worst(rows)
        worst = rows[0] if worst is None else worst
        shape = None if worst.seq_len is None else format_shape(worst)
        reasons.append(Reason(status, backend, str(worst.reason), shape, len(rows)))
    return reasons


def _phrase_verdict(report: ValidationReport, backends: tuple[BackendSummary, ...]) -> str:
    if report:
        return "The exported model gives the same answers as the original."
    failing = [one.name for one in backends if one.failed]
    passing = [one.name for one in backends if one.passed and not one.failed]
    if failing and passing:
        does = "does" if len(failing) == 1 else "do"
        return f"{' and '.join(failing)} {does} not give the same answers as the original."
    if failing:
        return "The exported model does not give the same answers as the original."
    return "Nothing was checked, so nothing is proven."
