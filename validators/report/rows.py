"""What follows from the numbers of a row, alone and among others, and how rows are written for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.formatting import format_agreement, format_error, format_factor, format_ms, format_percent
from flash_export.validators.lengths import RECORDED
from flash_export.validators.results import ACCURACY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from flash_export.tasks.base import Measure
    from flash_export.validators.latency import Percentiles
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


def compute_relative_limit(row: Row) -> float | None:
    """Return the tolerance as a fraction of the output's scale, like ``max_rel_error``; None where that is 0."""
    if not row.max_rel_error or not row.max_abs_error or row.tolerance is None:
        return None
    return row.tolerance * row.max_rel_error / row.max_abs_error


def has_noise(rows: Iterable[Row]) -> bool:
    """Return whether the eager model's own error is known of any row; it is not of a quantized bundle."""
    return any(row.noise is not None for row in rows)


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


def format_share(row: Row) -> str:
    """Name the error of a compared row as ``1.2% of the limit`` or ``3.5 times the limit``."""
    ratio = compute_error_ratio(row) or 0.0
    return f"{format_percent(ratio)} {'the' if ratio >= 2 else 'of the'} limit"


def format_shape(row: Row) -> str:
    """Name the shape of a row: ``batch 3, length 257, masked``."""
    if row.seq_len is None:
        return "not tried" if row.status == "skipped" else "any shape"
    return f"batch {row.batch}, length {row.seq_len}{format_inputs(row, ', ')}"


def format_inputs(row: Row, separator: str = "") -> str:
    """Name what is special about the inputs of a row: ``masked``, ``held-out``, or nothing."""
    words = [word for word, holds in (("held-out", row.inputs == RECORDED), ("masked", row.masked)) if holds]
    return "".join(f"{separator}{word}" for word in words)


def format_interval(latency: Percentiles) -> str:
    """Format the interval that holds the median with 95 % confidence, such as ``12.1 to 12.9 ms``."""
    low, high = format_ms(latency.p50_low), format_ms(latency.p50_high)
    number, _, unit = low.partition(" ")
    return f"{number} to {high}" if high.endswith(f" {unit}") else f"{low} to {high}"


def format_median(latency: Percentiles | None) -> str | None:
    """Format the median, if there is one."""
    return None if latency is None else format_ms(latency.p50)


def format_measure(measure: Measure, measures: Mapping[str, float]) -> str | None:
    """Format what a task measured, if it did, without its unit: shares rounded down, bits as errors."""
    if measure.name not in measures:
        return None
    value = measures[measure.name]
    if measure.unit == "share":
        return format_agreement(value)
    return format_error(value) if measure.unit.startswith("bits") else f"{value:.3g}"


def format_score(measure: Measure, value: float) -> str:
    """Format a score on held-out data without its unit: bits in four decimals."""
    return f"{value:.4f}" if measure.unit == "bits" else f"{value:.2f}"


def name_measure(measure: Measure) -> str:
    """Name a column of what a task measured: the label, with the unit that the cells do not have."""
    return measure.label if measure.unit == "share" else f"{measure.label} ({measure.unit.partition(' ')[0]})"


def format_multiple(row: Row) -> str | None:
    """Format the error as a multiple of the eager model's own: ``2.5x``."""
    multiple = compute_noise_multiple(row)
    return None if multiple is None else f"{format_factor(multiple)}x"
