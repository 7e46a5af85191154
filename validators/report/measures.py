"""Numbers that follow from those of a row: shares, multiples, and the same on the scale of the output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.validators.results import ACCURACY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from flash_export.tasks.base import Measure
    from flash_export.validators.results import Row, ValidationReport


def compute_error_ratio(row: Row) -> float | None:
    """Return the error as a fraction of the tolerance: above 1 the row failed."""
    if row.max_abs_error is None or not row.tolerance:
        return None
    return row.max_abs_error / row.tolerance


def compute_noise_multiple(row: Row) -> float | None:
    """Return the error as a multiple of the eager model's own; None where that is 0 or unknown."""
    if row.max_rel_error is None or not row.noise:
        return None
    return row.max_rel_error / row.noise


def has_noise(rows: Iterable[Row]) -> bool:
    """Return whether the eager model's own error is known of any row; it is not of a quantized bundle."""
    return any(row.noise is not None for row in rows)


def compute_relative_limit(row: Row) -> float | None:
    """Return the tolerance as a fraction of the output's scale, like ``max_rel_error``; None where that is 0."""
    if not row.max_rel_error or not row.max_abs_error or row.tolerance is None:
        return None
    return row.tolerance * row.max_rel_error / row.max_abs_error


def select_comparisons(report: ValidationReport) -> list[Row]:
    """Return the rows that compare a shape with the reference, tried or not."""
    return [row for row in report.rows if row.check == ACCURACY]


def select_invariances(report: ValidationReport) -> list[Row]:
    """Return the rows that compare a backend with itself."""
    return [row for row in report.rows if row.check != ACCURACY]


def find_worst(rows: Iterable[Row]) -> Row | None:
    """Return the row whose error is the largest fraction of its tolerance; None when nothing was compared."""
    compared = [row for row in rows if compute_error_ratio(row) is not None]
    return max(compared, key=lambda row: compute_error_ratio(row) or 0.0, default=None)


def find_timed(rows: Iterable[Row]) -> Row | None:
    """Return the timed row that stands for the others: of the smallest batch the longest; None without any."""
    timed = [row for row in rows if row.latency_ms is not None and row.speedup is not None]
    return min(timed, key=lambda row: (row.batch or 0, -(row.seq_len or 0)), default=None)


def find_worst_measures(measures: Sequence[Measure], found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the worst value of each measure that was taken at all."""
    worst = {}
    for measure in measures:
        if values := [one[measure.name] for one in found if measure.name in one]:
            worst[measure.name] = min(values) if measure.better == "higher" else max(values)
    return worst
