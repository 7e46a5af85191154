"""What a report says in a few sentences, for the terminal and for the top of the HTML page."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flash_export.validators.results import Row, Status, ValidationReport


_SHOWN_REASONS = 6


@dataclass(frozen=True)
class Reason:
    """Why ``count`` rows of a backend failed or were skipped."""

    status: Status
    backend: str
    text: str
    count: int


@dataclass(frozen=True)
class Summary:
    """The few facts that a reader wants first.

    Attributes:
        verdict: One plain sentence.
        passed: Rows that passed.
        failed: Rows that failed.
        skipped: Rows that were skipped.
        worst: The row whose error is the largest fraction of its tolerance.
        speedups: Slowest and fastest speedup; None when no latency was measured.
        reasons: Why rows failed or were skipped, failures first; the first few of each.
        hidden_reasons: Number of further reasons.
        backends: Names of the backends that were compared.
        batches: Batch sizes that were compared.
        lengths: Lengths that were compared.
        any_masked: Whether any of them was masked.
        has_remarks: Whether any row of a shape has a reason.
    """

    verdict: str
    passed: int
    failed: int
    skipped: int
    worst: Row | None
    speedups: tuple[float, float] | None
    reasons: tuple[Reason, ...]
    hidden_reasons: int
    backends: tuple[str, ...]
    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    any_masked: bool
    has_remarks: bool

    @property
    def total(self) -> int:
        """Number of rows."""
        return self.passed + self.failed + self.skipped

    @property
    def counts(self) -> str:
        """``76 passed, 0 failed, 2 skipped``."""
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def summarize(report: ValidationReport) -> Summary:
    """Boil a report down."""
    compared = [row for row in report.rows if compute_error_ratio(row) is not None]
    speedups = [row.speedup for row in report.rows if row.speedup is not None]
    reasons = _count_reasons(report)
    shown = [
        reason
        for status in ("failed", "skipped")
        for reason in [one for one in reasons if one.status == status][:_SHOWN_REASONS]
    ]
    return Summary(
        verdict=_phrase_verdict(report),
        passed=report.count("passed"),
        failed=report.count("failed"),
        skipped=report.count("skipped"),
        worst=max(compared, key=lambda row: compute_error_ratio(row) or 0.0, default=None),
        speedups=(min(speedups), max(speedups)) if speedups else None,
        reasons=tuple(shown),
        hidden_reasons=len(reasons) - len(shown),
        backends=tuple(dict.fromkeys(row.backend for row in compared)),
        batches=tuple(sorted({row.batch for row in compared if row.batch})),
        lengths=tuple(sorted({row.seq_len for row in compared if row.seq_len})),
        any_masked=any(row.masked for row in compared),
        has_remarks=any(row.reason and row.seq_len is not None for row in report.rows),
    )


def compute_error_ratio(row: Row) -> float | None:
    """Return the error as a fraction of the tolerance: above 1 the row failed."""
    if row.max_abs_error is None or not row.tolerance:
        return None
    return row.max_abs_error / row.tolerance


def format_percent(fraction: float) -> str:
    """Format a fraction so that small ones stay readable.

    >>> format_percent(0.0123), format_percent(0.00001), format_percent(3.5), format_percent(0.0)
    ('1.2%', '<0.1%', '3.5 times', '0%')
    """
    if fraction >= 2:
        return f"{fraction:.2g} times" if fraction < 100 else f"{fraction:.0f} times"
    if 0 < fraction < 0.001:
        return "<0.1%"
    percent = 100 * fraction
    return f"{percent:.0f}%" if percent >= 10 or percent == 0 else f"{percent:.1f}%"


def format_share(row: Row) -> str:
    """Name the error of a compared row as ``1.2% of the tolerance`` or ``3.5 times the tolerance``."""
    ratio = compute_error_ratio(row) or 0.0
    return f"{format_percent(ratio)} {'the' if ratio >= 2 else 'of the'} tolerance"


def format_factor(factor: float) -> str:
    """Format a speedup.

    >>> format_factor(0.456), format_factor(2.345), format_factor(127.3)
    ('0.46', '2.3', '127')
    """
    return f"{factor:.2f}" if factor < 1 else f"{factor:.1f}" if factor < 10 else f"{factor:.0f}"


def format_shape(row: Row) -> str:
    """Name the shape of a row: ``batch 3, length 257, masked``."""
    if row.seq_len is None:
        return "not tried"
    return f"batch {row.batch}, length {row.seq_len}{', masked' if row.masked else ''}"


def format_ms(milliseconds: float) -> str:
    """Format a latency with its unit.

    >>> format_ms(0.1234), format_ms(12.34), format_ms(4321)
    ('0.123 ms', '12.3 ms', '4.32 s')
    """
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.3g} s"
    return f"{milliseconds:.3g} ms"


def _count_reasons(report: ValidationReport) -> list[Reason]:
    counts = Counter(
        (row.status, row.backend, row.reason) for row in report.rows if row.reason and row.status != "passed"
    )
    return [Reason(status, backend, text, count) for (status, backend, text), count in counts.items()]


def _phrase_verdict(report: ValidationReport) -> str:
    if report.passed:
        return "The exported model gives the same answers as the original."
    if report.count("failed"):
        return "The exported model does not give the same answers as the original."
    return "Nothing was checked, so nothing is proven."
