"""Comparing what a backend answers with the reference in float64, and with what its precision costs anyway."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Bool, Float

_BLOCK_POSITIONS = 4096


class Limit(Protocol):
    """What decides how far an output may be off: a tolerance, or the budget of a precision."""

    @property
    def noise_ratio(self) -> float | None:
        """Largest accepted error as a multiple of the eager model's own; None: that does not matter."""
        ...

    @property
    def kl_bits(self) -> float | None:
        """Largest accepted divergence of the predictions, in bits a position; None: any."""
        ...

    @property
    def bits_change(self) -> float | None:
        """Largest accepted change of the bits a byte on held-out text, as a fraction; None: any."""
        ...

    def compute_own_limit(self, scale: float, noise: float) -> float:
        """Return how much two of a backend's own runs that compute the same may differ."""
        ...

    def compute_limit(self, scale: float, noise: float) -> float:
        """Return the largest accepted absolute error."""
        ...

    def describe(self) -> dict[str, str]:
        """Say it by name, for reports."""
        ...


@dataclass(frozen=True)
class AccuracyResult:
    """How far an output is from the expected one; true when it is within the limit.

    Attributes:
        reason: Why it is not, in one line; None when it is.
        max_abs_error: Largest absolute difference; None when it cannot be told.
        max_rel_error: The same as a fraction of the largest expected magnitude.
        noise: The eager model's own error, as such a fraction; None where it is not finite.
        tolerance: Largest accepted absolute difference.
        top1_agreement: Fraction of positions whose largest logit is the same.
        kl_bits: Mean divergence of the predicted distribution from the expected one, in bits a position.
    """

    reason: str | None
    max_abs_error: float | None = None
    max_rel_error: float | None = None
    noise: float | None = None
    tolerance: float | None = None
    top1_agreement: float | None = None
    kl_bits: float | None = None

    def __bool__(self) -> bool:
        return self.reason is None


def compare_outputs(
    expected: Float[np.ndarray, "batch seq vocab"],
    eager: Float[np.ndarray, "batch seq vocab"],
    actual: Float[np.ndarray, "batch seq vocab"],
    valid: Bool[np.ndarray, "batch seq"],
    limit: Limit,
    *,
    dtype: str | None = None,
    other_noise: float = 0.0,
) -> AccuracyResult:
    """Compare an output with the expected one where it is valid.

    Args:
        expected: What the reference gives in float64.
        eager: What the eager model gives in the graph's precision.
        actual: What the backend gives.
        valid: Which positions count; the others are padding and may hold anything.
        limit: Accepted difference.
        dtype: Numpy name of the dtype that ``actual`` must have; None: that of ``eager``.
        other_noise: Error of the eager model on other inputs of this shape, as a fraction of their scale.
    """
    wanted = dtype or str(eager.dtype)
    if str(actual.dtype) != wanted:
        return AccuracyResult(f"the output has dtype {actual.dtype}, expected {wanted}")
    if actual.shape != expected.shape:
        return AccuracyResult(f"the output has shape {actual.shape}, expected {expected.shape}")

    max_error = noise = scale = divergence = 0.0
    agreeing = bad_expected = bad_actual = 0
    for wanted_block, eager_block, found_block in _iterate_blocks(valid, expected, eager, actual):
        bad_expected += int(np.count_nonzero(~np.isfinite(wanted_block)))
        bad_actual += int(np.count_nonzero(~np.isfinite(found_block)))
        if bad_expected or bad_actual:
            continue
        scale = max(scale, float(np.abs(wanted_block).max()))
        max_error = max(max_error, float(np.abs(wanted_block - found_block).max()))
        own = float(np.abs(wanted_block - eager_block).max())
        noise = own if math.isnan(own) else max(noise, own)
        agreeing += int(np.count_nonzero(wanted_block.argmax(axis=-1) == found_block.argmax(axis=-1)))
        divergence += _sum_divergence(wanted_block, found_block)
    if bad_expected:
        return AccuracyResult(f"the reference itself gives NaN or infinity in {bad_expected} values")
    if bad_actual:
        return AccuracyResult(f"the output has NaN or infinity in {bad_actual} values")

    noise = max(noise, other_noise * scale) if math.isfinite(noise) else noise
    positions = int(valid.sum())
    result = AccuracyResult(
        reason=None,
        max_abs_error=max_error,
        max_rel_error=max_error / scale if scale else None,
        noise=noise / scale if scale and math.isfinite(noise) else None,
        tolerance=limit.compute_limit(scale, noise if math.isfinite(noise) else math.nan),
        top1_agreement=agreeing / positions,
        kl_bits=max(divergence / positions / math.log(2), 0.0),
    )
    if max_error > (result.tolerance or 0.0):
        return _explain(result, limit)
    if limit.kl_bits is not None and (result.kl_bits or 0.0) > limit.kl_bits:
        reason = f"the predictions diverge by {result.kl_bits:.3g} bits a position, accepted are {limit.kl_bits:g}"
        return replace(result, reason=reason)
    return result


def _explain(result: AccuracyResult, limit: Limit) -> AccuracyResult:
    """Return the result of a failed comparison with the reason in one line."""
    own = ""
    if result.noise and limit.noise_ratio is not None:
        own = f", {(result.max_rel_error or 0) / result.noise:.3g} times the eager model's own"
    reason = (
        f"max abs error {result.max_abs_error:.3g} exceeds the tolerance {result.tolerance:.3g}{own}; "
        f"the top token agrees at {math.floor(1000 * (result.top1_agreement or 0)) / 10:g}% of the positions"
    )
    return replace(result, reason=reason)


def _iterate_blocks(
    valid: Bool[np.ndarray, "batch seq"], *outputs: Float[np.ndarray, "batch seq vocab"]
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield the valid positions in fp64, a bounded number at a time: whole outputs may be gigabytes."""
    for row in range(len(valid)):
        positions = np.flatnonzero(valid[row])
        for start in range(0, len(positions), _BLOCK_POSITIONS):
            block = positions[start : start + _BLOCK_POSITIONS]
            yield tuple(output[row, block].astype(np.float64) for output in outputs)


def _sum_divergence(expected: Float[np.ndarray, "n vocab"], actual: Float[np.ndarray, "n vocab"]) -> float:
    """Return the sum over positions of ``KL(softmax(expected) || softmax(actual))``, in nats."""
    log_p, log_q = compute_log_softmax(expected), compute_log_softmax(actual)
    return float((np.exp(log_p) * (log_p - log_q)).sum())


def compute_log_softmax(logits: Float[np.ndarray, "n vocab"]) -> Float[np.ndarray, "n vocab"]:
    """Return the logarithms of the probabilities."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted
