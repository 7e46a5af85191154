"""How a magnitude grows with the length, and where it would leave the range of fp16.

Growth is taken for a power of the length: a straight line through the logarithms, by least squares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

FP16_MAX = 65504.0
FP32_MAX = 3.4028234663852886e38
FAR = 1e9  # tokens; what overflows beyond is no concern, and no line reaches that far
MIN_POINTS = 3
# Below this power a magnitude does not double in a factor of 2**50 of the length.
MIN_POWER = 0.02
# Two-sided 95% quantiles of Student's t, by degrees of freedom from 1 on.
_T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)

Verdict = Literal["exceeded", "grows", "no growth", "unknown"]


@dataclass(frozen=True)
class Growth:
    """How a magnitude grows, and its overflow horizon: the length at which it would exceed the limit.

    Attributes:
        verdict: ``exceeded`` at a measured length, ``grows``, ``no growth`` that the measurements can tell from
            none, or ``unknown``, because there are less than three lengths at which it is above 0.
        power: Power of the length; None if unknown.
        power_interval: Its 95% interval.
        horizon: Length at which the limit is passed, if it was or if there is growth; None beyond ``FAR``.
        horizon_interval: What the ends of the interval of the power give; None stands for beyond ``FAR``.
    """

    verdict: Verdict
    power: float | None = None
    power_interval: tuple[float, float] | None = None
    horizon: float | None = None
    horizon_interval: tuple[float | None, float | None] = (None, None)


def fit_growth(seq_lens: Sequence[int], magnitudes: Sequence[float], limit: float = FP16_MAX) -> Growth:
    """Fit a power law.

    Args:
        seq_lens: Lengths, ascending.
        magnitudes: Largest magnitude at each.
        limit: What must not be exceeded.

    Returns:
        The growth. What saturates or bends fits badly, which the interval shows.
    """
    passed = [length for length, size in zip(seq_lens, magnitudes, strict=True) if not size <= limit]
    points = [
        (math.log(length), math.log(size))
        for length, size in zip(seq_lens, magnitudes, strict=True)
        if 0 < size < math.inf
    ]
    if len(points) < MIN_POINTS:
        first = float(passed[0]) if passed else None
        return Growth("exceeded" if passed else "unknown", horizon=first, horizon_interval=(first, first))
    power, half_width, center = _fit_line(np.array(points))
    interval = (power - half_width, power + half_width)
    if passed:
        first = float(passed[0])
        return Growth("exceeded", power, interval, first, (first, first))
    # The steeper end of the interval reaches the limit first.
    early, late = (_solve_length(center, end, limit) for end in reversed(interval))
    if interval[0] <= 0 or power < MIN_POWER:
        return Growth("no growth", power, interval, None, (early, None))
    return Growth("grows", power, interval, _solve_length(center, power, limit), (early, late))


def _fit_line(points: np.ndarray) -> tuple[float, float, tuple[float, float]]:
    """Return the slope, half its 95% interval, and the centre of gravity."""
    x, y = points.T
    center = (float(x.mean()), float(y.mean()))
    spread = float(((x - center[0]) ** 2).sum())
    slope = float(((x - center[0]) * (y - center[1])).sum()) / spread
    residual = float(((y - center[1] - slope * (x - center[0])) ** 2).sum())
    freedom = len(points) - 2
    quantile = _T_95[min(freedom, len(_T_95)) - 1]
    return slope, quantile * math.sqrt(residual / freedom / spread), center


def _solve_length(center: tuple[float, float], power: float, limit: float) -> float | None:
    """Return the length at which a line through the centre passes the limit; None beyond ``FAR``."""
    if power <= 0:
        return None
    exponent = center[0] + (math.log(limit) - center[1]) / power
    return math.exp(exponent) if exponent < math.log(FAR) else None
