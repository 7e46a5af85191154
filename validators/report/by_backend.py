"""What a report says of one backend, and its comparisons by groups of lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.validators.plan import RECORDED
from flash_export.validators.report.measures import (
    find_timed,
    find_worst,
    find_worst_measures,
    select_comparisons,
    select_invariances,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flash_export.validators.footprint import Footprint
    from flash_export.validators.results import Row, Status, ValidationReport


@dataclass(frozen=True)
class BackendSummary:
    """One backend in a few numbers.

    Attributes:
        name: Name of the backend.
        passed: Rows that passed.
        failed: Rows that failed.
        skipped: Rows that were skipped.
        reason: Why the backend was skipped as a whole; None when it was not.
        worst: The comparison whose error is the largest fraction of its tolerance.
        measures: The worst value of what the task measures, by name; of a quantized bundle on held-out data, if it was
            read: random tokens have near ties, which few bits decide otherwise.
        invariances: The checks against itself.
        timed: The row whose times stand for the others: the smallest batch, its longest length.
        speedups: Smallest and largest speedup.
        score: On the held-out data.
        footprint: What it costs in a process of its own.
    """

    name: str
    passed: int
    failed: int
    skipped: int
    reason: str | None
    worst: Row | None
    measures: dict[str, float]
    invariances: tuple[Row, ...]
    timed: Row | None
    speedups: tuple[float, float] | None
    score: float | None
    footprint: Footprint | None

    @property
    def is_tried(self) -> bool:
        """Whether any of its checks ran."""
        return self.passed + self.failed > 0

    @property
    def status(self) -> Status:
        """What came out of it as a whole."""
        return "failed" if self.failed else "passed" if self.passed else "skipped"


@dataclass(frozen=True)
class LengthGroup:
    """The comparisons of a backend between two lengths.

    Attributes:
        low: Shortest length.
        high: Longest length.
        rows: The comparisons, tried or not.
    """

    low: int
    high: int
    rows: tuple[Row, ...]

    @property
    def label(self) -> str:
        """``512`` or ``129-256``."""
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"

    @property
    def status(self) -> Status:
        """``failed`` if any row failed, else ``passed`` if any passed."""
        found = {row.status for row in self.rows}
        return "failed" if "failed" in found else "passed" if "passed" in found else "skipped"

    @property
    def worst(self) -> Row | None:
        """The row whose error is the largest fraction of its tolerance."""
        return find_worst(self.rows)

    @property
    def timed(self) -> Row | None:
        """The row whose times stand for the others."""
        return find_timed(self.rows)


def summarize_backend(report: ValidationReport, name: str) -> BackendSummary:
    """Boil the rows of one backend down."""
    rows = [row for row in report.rows if row.backend == name]
    comparisons = [row for row in select_comparisons(report) if row.backend == name]
    statuses = [row.status for row in rows]
    recorded = [row for row in comparisons if row.inputs == RECORDED and row.measures]
    judged = recorded if report.is_quantized and recorded else comparisons
    speedups = [row.speedup for row in rows if row.speedup is not None]
    return BackendSummary(
        name=name,
        passed=statuses.count("passed"),
        failed=statuses.count("failed"),
        skipped=statuses.count("skipped"),
        reason=next((row.reason for row in comparisons if row.seq_len is None), None),
        worst=find_worst(comparisons),
        measures=find_worst_measures(report.measures, [row.measures for row in judged]),
        invariances=tuple(row for row in select_invariances(report) if row.backend == name),
        timed=find_timed(rows),
        speedups=(min(speedups), max(speedups)) if speedups else None,
        score=None if report.scores is None else report.scores.values.get(name),
        footprint=next((one for one in report.footprints if one.backend == name), None),
    )


def group_by_length(rows: Sequence[Row]) -> list[LengthGroup]:
    """Return the comparisons in groups that end at powers of two: 1, 2, 3-4, 5-8, ..., as far as there are any."""
    groups: dict[int, list[Row]] = {}
    for row in rows:
        if row.seq_len is not None:
            groups.setdefault((row.seq_len - 1).bit_length(), []).append(row)
    return [
        LengthGroup(min(lengths), max(lengths), tuple(own))
        for _, own in sorted(groups.items())
        for lengths in ([row.seq_len for row in own if row.seq_len is not None],)
    ]
