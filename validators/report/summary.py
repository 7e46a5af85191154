"""What a report says in a few sentences, for the terminal and for the top of a page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.validators.plan import TEXT
from flash_export.validators.report.by_backend import BackendSummary, summarize_backend
from flash_export.validators.report.formatting import format_shape
from flash_export.validators.report.measures import compute_error_ratio, find_worst, select_comparisons
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
        dearest: The backend that needs the most bits per byte; None without such bits.
        random_agreement: The smallest agreement on random tokens, where that of the backends is of held-out text alone.
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
    dearest: BackendSummary | None
    random_agreement: float | None
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
    measured = [one for one in backends if one.bits_per_byte is not None and "eager" in (report.bits_per_byte or {})]
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
        dearest=max(measured, key=lambda one: one.bits_per_byte or 0.0, default=None),
        random_agreement=_find_random_agreement(report, comparisons),
        reasons=tuple(shown),
        hidden_reasons=len(reasons) - len(shown),
        batches=tuple(sorted({row.batch for row in compared if row.batch})),
        lengths=tuple(sorted({row.seq_len for row in compared if row.seq_len})),
        any_masked=any(row.masked for row in compared),
        any_text=any(row.inputs == TEXT for row in compared),
    )


def describe_agreement(report: ValidationReport) -> str:
    """Return the heading of what :attr:`BackendSummary.lowest_agreement` holds."""
    is_of_text = _find_random_agreement(report, select_comparisons(report)) is not None
    return "Same top token, text" if is_of_text else "Same top token"


def _find_random_agreement(report: ValidationReport, comparisons: list[Row]) -> float | None:
    has_text = any(row.inputs == TEXT and row.top1_agreement is not None for row in comparisons)
    if not (report.is_quantized and has_text):
        return None
    random = (row.top1_agreement for row in comparisons if row.inputs != TEXT and row.top1_agreement is not None)
    return min(random, default=None)


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
