"""Comparing what a backend answers with the reference in float64, and with what its precision costs anyway."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from flash_export.data.batch import iterate_blocks
from flash_export.tasks.base import describe_measures
from flash_export.tasks.registry import get_task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Bool

    from flash_export.data.batch import Outputs
    from flash_export.interface import Interface, TensorSpec
    from flash_export.limits import Limit


@dataclass(frozen=True)
class AccuracyResult:
    """How far an output is from the expected one; true when it is within the limit.

    Attributes:
        reason: Why it is not, in one line; None when it is.
        max_abs_error: Largest absolute difference; None when it cannot be told.
        max_rel_error: The same as a fraction of the largest expected magnitude.
        noise: The eager model's own error, as such a fraction; None where it is not finite.
        tolerance: Largest accepted absolute difference.
        output: Which output that is, of a model that has several; the furthest off.
        measures: What the task measures, by name.
    """

    reason: str | None
    max_abs_error: float | None = None
    max_rel_error: float | None = None
    noise: float | None = None
    tolerance: float | None = None
    output: str | None = None
    measures: dict[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.reason is None


@dataclass(frozen=True)
class _Distance:
    """How far one output is off: absolute figures, and the largest expected magnitude."""

    error: float
    noise: float
    scale: float


def compare_outputs(
    interface: Interface,
    expected: Outputs,
    eager: Outputs,
    actual: Outputs,
    compared: Bool[np.ndarray, "batch seq"],
    limit: Limit,
    *,
    specs: Sequence[TensorSpec] | None = None,
    other_noise: Mapping[str, float] | None = None,
) -> AccuracyResult:
    """Compare what a backend returns with what is expected, where it counts.

    Args:
        interface: What the model returns, and for which task.
        expected: What the reference gives in float64.
        eager: What the eager model gives in the graph's precision.
        actual: What the backend gives.
        compared: Which positions count; the others are padding and may hold anything.
        limit: Accepted difference.
        specs: What the backend returns, with the dtypes that it must have; None: those of the eager model.
        other_noise: Error of the eager model on other inputs of this shape, as a fraction of their scale, by output.
    """
    for index, spec in enumerate(interface.outputs):
        wanted = specs[index].dtype if specs is not None else str(eager[spec.name].dtype)
        found = actual[spec.name]
        which = f"the output {spec.name}" if len(interface.outputs) > 1 else "the output"
        if str(found.dtype) != wanted:
            return AccuracyResult(f"{which} has dtype {found.dtype}, expected {wanted}")
        if found.shape != expected[spec.name].shape:
            return AccuracyResult(f"{which} has shape {found.shape}, expected {expected[spec.name].shape}")
    results = []
    for spec in interface.outputs:
        distance = _measure_distance(spec, compared, expected[spec.name], eager[spec.name], actual[spec.name])
        if isinstance(distance, AccuracyResult):
            return distance
        if math.isfinite(distance.noise):
            other = (other_noise or {}).get(spec.name, 0.0) * distance.scale
            distance = replace(distance, noise=max(distance.noise, other))
        results.append(_describe_distance(distance, limit, spec.name if len(interface.outputs) > 1 else None))
    task = get_task(interface.task)
    measures = task.compare(interface, expected, actual, compared).measures
    worst = replace(max(results, key=_get_excess), measures=measures)
    if (worst.max_abs_error or 0.0) > (worst.tolerance or 0.0):
        return _explain(worst, limit, describe_measures(task, measures))
    for measure in task.measures:
        bound, value = limit.measures.get(measure.name), measures[measure.name]
        if bound is not None and (value > bound if measure.better == "lower" else value < bound):
            reason = f"{measure.label} {measure.format(value)}, accepted are {measure.format(bound)}"
            return replace(worst, reason=reason)
    return worst


def _measure_distance(
    spec: TensorSpec, compared: Bool[np.ndarray, "batch seq"], *outputs: np.ndarray
) -> _Distance | AccuracyResult:
    """Return how far an output is off, or what makes that impossible to tell."""
    max_error = noise = scale = 0.0
    bad_expected = bad_actual = 0
    for wanted, own, found in iterate_blocks(spec, compared, *outputs):
        bad_expected += int(np.count_nonzero(~np.isfinite(wanted)))
        bad_actual += int(np.count_nonzero(~np.isfinite(found)))
        if bad_expected or bad_actual:
            continue
        scale = max(scale, float(np.abs(wanted).max()))
        max_error = max(max_error, float(np.abs(wanted - found).max()))
        with np.errstate(invalid="ignore"):
            own_error = float(np.abs(wanted - own).max())
        noise = own_error if math.isnan(own_error) else max(noise, own_error)
    if bad_expected:
        return AccuracyResult(f"the reference itself gives NaN or infinity in {bad_expected} values of {spec.name}")
    if bad_actual:
        return AccuracyResult(f"{spec.name} has NaN or infinity in {bad_actual} values")
    return _Distance(max_error, noise, scale)


def _describe_distance(distance: _Distance, limit: Limit, output: str | None) -> AccuracyResult:
    scale, noise = distance.scale, distance.noise
    return AccuracyResult(
        reason=None,
        max_abs_error=distance.error,
        max_rel_error=distance.error / scale if scale else None,
        noise=noise / scale if scale and math.isfinite(noise) else None,
        tolerance=limit.compute_limit(scale, noise if math.isfinite(noise) else math.nan),
        output=output,
    )


def _get_excess(result: AccuracyResult) -> float:
    """Return how large an error is as a multiple of what is accepted."""
    error, tolerance = result.max_abs_error or 0.0, result.tolerance or 0.0
    return error / tolerance if tolerance else (math.inf if error else 0.0)


def _explain(result: AccuracyResult, limit: Limit, measured: str) -> AccuracyResult:
    """Return the result of a failed comparison with the reason in one line."""
    own = ""
    if result.noise and limit.noise_ratio is not None:
        own = f", {(result.max_rel_error or 0) / result.noise:.3g} times the eager model's own"
    where = "" if result.output is None else f" of {result.output}"
    reason = (
        f"max abs error {result.max_abs_error:.3g}{where} exceeds the tolerance {result.tolerance:.3g}{own}; {measured}"
    )
    return replace(result, reason=reason)
