"""Comparing what a backend answers with what the eager model answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flash_export.config import Tolerance

_BLOCK_POSITIONS = 4096


@dataclass(frozen=True)
class AccuracyResult:
    """How far an output is from the expected one; true when it is within the tolerance.

    Attributes:
        reason: Why it is not, in one line; None when it is.
        max_abs_error: Largest absolute difference; None when it cannot be told.
        max_rel_error: The same as a fraction of the largest expected magnitude.
        tolerance: Largest accepted absolute difference.
        top1_agreement: Fraction of positions whose largest logit is the same.
    """

    reason: str | None
    max_abs_error: float | None = None
    max_rel_error: float | None = None
    tolerance: float | None = None
    top1_agreement: float | None = None

    def __bool__(self) -> bool:
        return self.reason is None


def compare_outputs(
    expected: np.ndarray, actual: np.ndarray, valid: np.ndarray, tolerance: Tolerance, *, dtype: str | None = None
) -> AccuracyResult:
    """Compare two outputs where they are valid.

    Args:
        expected: ``(batch, seq, vocab)`` of the eager model.
        actual: The same of the backend.
        valid: Bool ``(batch, seq)``; other positions are padding and may hold anything.
        tolerance: Accepted difference, relative to the largest expected magnitude.
        dtype: Numpy name of the dtype that ``actual`` must have; None: that of ``expected``.
    """
    wanted = dtype or str(expected.dtype)
    if str(actual.dtype) != wanted:
        return AccuracyResult(f"the output has dtype {actual.dtype}, expected {wanted}")
    if actual.shape != expected.shape:
        return AccuracyResult(f"the output has shape {actual.shape}, expected {expected.shape}")

    max_error = scale = 0.0
    agreeing = bad_expected = bad_actual = 0
    for left, right in _iterate_blocks(expected, actual, valid):
        bad_expected += int(np.count_nonzero(~np.isfinite(left)))
        bad_actual += int(np.count_nonzero(~np.isfinite(right)))
        if bad_expected or bad_actual:
            continue
        scale = max(scale, float(np.abs(left).max()))
        max_error = max(max_error, float(np.abs(left - right).max()))
        agreeing += int(np.count_nonzero(left.argmax(axis=-1) == right.argmax(axis=-1)))
    if bad_expected:
        return AccuracyResult(f"the eager model itself gives NaN or infinity in {bad_expected} values")
    if bad_actual:
        return AccuracyResult(f"the output has NaN or infinity in {bad_actual} values")

    limit = tolerance.compute_limit(scale)
    agreement = agreeing / int(valid.sum())
    reason = None
    if max_error > limit:
        reason = (
            f"max abs error {max_error:.3g} exceeds the tolerance {limit:.3g}; "
            f"the top token agrees at {math.floor(1000 * agreement) / 10:g}% of the positions"
        )
    return AccuracyResult(reason, max_error, max_error / scale if scale else None, limit, agreement)


def _iterate_blocks(
    expected: np.ndarray, actual: np.ndarray, valid: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the valid positions in fp64, a bounded number at a time: whole outputs may be gigabytes."""
    for row in range(expected.shape[0]):
        positions = np.flatnonzero(valid[row])
        for start in range(0, len(positions), _BLOCK_POSITIONS):
            block = positions[start : start + _BLOCK_POSITIONS]
            yield expected[row, block].astype(np.float64), actual[row, block].astype(np.float64)
