"""The two plots of a validation: errors by length between their limit and the noise floor, and latencies by length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.formatting import format_factor, format_ms, format_percent
from flash_export.report.document import Axis, Plot, Point, Series
from flash_export.validators.report.rows import (
    compute_error_ratio,
    compute_relative_limit,
    format_interval,
    format_multiple,
    format_shape,
    has_noise,
    select_comparisons,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from flash_export.validators.latency import Percentiles
    from flash_export.validators.results import Row, ValidationReport

COLOURS = 6


def build_error_plot(report: ValidationReport) -> Plot | None:
    """Plot the largest error at each length between its limit and the eager model's own error.

    Returns:
        The plot; None when nothing was compared.
    """
    comparisons = select_comparisons(report)
    rows = [row for row in comparisons if row.max_rel_error is not None and row.tolerance]
    if not any(value for row in rows for value in (row.max_rel_error, row.noise, compute_relative_limit(row))):
        return None
    noise = _pick_largest(rows, lambda row: row.noise)
    series = [Series("PyTorch's own error", "noise", noise, swatch="area", is_filled=True)] if noise else []
    series.append(Series("limit", "limit", _pick_largest(rows, compute_relative_limit), swatch="dash"))
    for index, (backend, own) in enumerate(_group_by_backend(rows)):
        for masked in (False, True):
            worst = _pick_worst(row for row in own if row.masked == masked)
            points = tuple(
                Point(
                    row.seq_len or 1,
                    row.max_rel_error or 0.0,
                    _describe_error(row),
                    "cross" if row.status == "failed" else "ring" if masked else "dot",
                )
                for row in worst
            )
            line = () if masked else tuple((point.x, point.y or 0.0) for point in points)
            if points:
                label, style = f"{backend}, masked" if masked else backend, f"s{index % COLOURS}"
                series.append(Series(label, style, line, points, "ring" if masked else "line"))
    if broken := [row for row in comparisons if row.status == "failed" and row.max_rel_error is None and row.seq_len]:
        crosses = tuple(
            Point(row.seq_len or 1, None, f"{row.backend}, {format_shape(row)}: {row.reason}", "cross")
            for row in broken
        )
        series.append(Series("failed without a number", "bad", points=crosses, swatch="cross"))
    floor = "Below the grey edge is what PyTorch itself is off by in this precision. " if has_noise(rows) else ""
    return Plot(
        "Error by length",
        f"Largest difference from exact arithmetic, over all batch sizes. {floor}The dashed line is the limit, and a "
        "cross a check that failed.",
        Axis("length", "lengths"),
        Axis("largest error / largest output", "decades"),
        tuple(series),
        _mark_chunk(report, [row.seq_len or 1 for row in rows]),
    )


def build_latency_plot(report: ValidationReport) -> Plot | None:
    """Plot median latency by length for the smallest batch; None when no latency was measured."""
    timed = [row for row in report.rows if row.latency_ms and row.eager_latency_ms and row.batch]
    if not timed:
        return None
    batch = min(row.batch for row in timed if row.batch)
    rows = [row for row in timed if row.batch == batch]
    groups = _group_by_backend(rows)
    series = []
    for index, (backend, own) in enumerate(groups):
        style = f"s{index % COLOURS}"
        beside = "" if len(groups) == 1 else f" beside {backend}"
        for label, style_, latencies in (
            (f"eager PyTorch{beside}", f"eager {style}", [row.eager_latency_ms for row in own]),
            (f"torch.compile{beside}", f"compiled {style}", [row.compiled_latency_ms for row in own]),
            (backend, style, [row.latency_ms for row in own]),
        ):
            points = tuple(
                _place_latency(row, latency, label)
                for row, latency in zip(own, latencies, strict=True)
                if latency is not None
            )
            if points:
                series.append(Series(label, style_, tuple((point.x, point.y or 0.0) for point in points), points))
    return Plot(
        "Latency by length",
        f"Median time of one run with batch size {batch}, measured in turn with the eager model; the bars hold the "
        "median with 95% confidence. Lower is faster.",
        Axis("length", "lengths"),
        Axis("time of one run", "decades", "ms"),
        tuple(series),
        _mark_chunk(report, [row.seq_len or 1 for row in rows]),
    )


def _place_latency(row: Row, latency: Percentiles, label: str) -> Point:
    title = f"{label}, length {row.seq_len}: {format_ms(latency.p50)} ({format_interval(latency)})"
    if latency is row.latency_ms and row.speedup is not None:
        title += f"; {format_factor(row.speedup)}x as fast as eager"
    return Point(row.seq_len or 1, latency.p50, title, spread=(latency.p50_low, latency.p50_high))


def _group_by_backend(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Return the rows of each backend, shortest first."""
    names = dict.fromkeys(row.backend for row in rows)
    return [
        (name, sorted((row for row in rows if row.backend == name), key=lambda row: row.seq_len or 0)) for name in names
    ]


def _mark_chunk(report: ValidationReport, lengths: Sequence[int]) -> tuple[float, str] | None:
    """Return where the model's chunk is among lengths; None outside of them."""
    chunk = report.environment.get("chunk_size")
    if isinstance(chunk, int) and lengths and min(lengths) < chunk < max(lengths):
        return chunk, f"chunk of {chunk}"
    return None


def _pick_largest(rows: Sequence[Row], measure: Callable[[Row], float | None]) -> tuple[tuple[float, float], ...]:
    """Return a point per length: the largest value of its rows, where there is any above 0.

    The rows of a length differ in noise, and so in limit; below the largest limit is every row that passed.
    """
    values: dict[int, float] = {}
    for row in rows:
        if value := measure(row):
            values[row.seq_len or 1] = max(value, values.get(row.seq_len or 1, value))
    return tuple((float(length), value) for length, value in sorted(values.items()))


def _pick_worst(rows: Iterable[Row]) -> list[Row]:
    """Return a row per length: one that failed before any other, and then the nearest to its limit."""
    worst: dict[int, Row] = {}
    for row in sorted(rows, key=lambda row: (row.status == "failed", compute_error_ratio(row) or 0.0)):
        worst[row.seq_len or 1] = row
    return [row for _, row in sorted(worst.items())]


def _describe_error(row: Row) -> str:
    multiple = format_multiple(row)
    own = "" if multiple is None else f", {multiple} the eager model's own"
    share = format_percent(compute_error_ratio(row) or 0.0)
    return f"{row.backend}, {format_shape(row)}: error {row.max_rel_error:.1e}{own}; {share} of the limit"
