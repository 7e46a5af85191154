"""The ways to round a product, and the error of its result by each.

Axes: m sampled tokens, k input of a product, n output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flash_export.config import FP8, INT4, INT8, INT8_DYNAMIC
from flash_export.exporters.quantization.numbers import (
    FP8_MAX,
    INT8_MAX,
    QuantizedWeight,
    round_activation,
    round_to_fp8,
    round_to_int4,
    round_to_int8,
)
from flash_export.exporters.quantization.plan import ProductPlan

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float

    from flash_export.exporters.quantization.trial import TrialProduct
    from flash_export.quantization.activations import Activations

    Measure = Callable[[Float[np.ndarray, "m k"], QuantizedWeight], float]

# How much of an outlier moves into the weights: 0 nothing, 1 all of it (SmoothQuant, arXiv 2211.10438, section 4.2).
STRENGTHS = (0.5, 0.7, 0.85, 1.0)
# Between the projection and the next product lies SiLU, so that smoothing cannot be folded into weights: it is a
# multiplication of its own, a pass over the widest tensor, and has to halve the error.
WORTH_A_PASS = 0.5
_TINY = np.finfo(np.float32).tiny
_MAX_LOGARITHM = 10.0


@dataclass(frozen=True)
class Rounding:
    """A way to round a product, and what that costs.

    Attributes:
        plan: What the graph is to do.
        error: Root mean square of the error of the product, as a fraction of that of the product.
        strength: How much of the outliers moved into the weights.
    """

    plan: ProductPlan
    error: float
    strength: float = 0.0


def list_roundings(
    product: TrialProduct, activations: Activations, scheme: str, *, block_size: int = 32, smoothing: bool = True
) -> tuple[Rounding, ...]:
    """Return the ways to round a product, the cheapest first; none where the scheme does not fit it."""
    x, weight = activations.sample, product.weight
    exact = x @ weight
    scale = float(np.square(exact).mean()) or 1.0

    def measure(x: np.ndarray, rounded: QuantizedWeight) -> float:
        return float(np.sqrt(np.square(x @ rounded.dequantize() - exact).mean() / scale))

    if scheme == INT4:
        if len(weight) % block_size:
            return ()
        return (Rounding(ProductPlan(INT4, block_size=block_size), measure(x, round_to_int4(weight, block_size))),)
    found = [_round_whole(product, activations, scheme, measure, 0.0)]
    if smoothing and scheme in (INT8, INT8_DYNAMIC):
        # fp8 has steps as fine for small numbers as for large ones.
        smoothed = (_round_whole(product, activations, scheme, measure, strength) for strength in STRENGTHS)
        best = min(smoothed, key=lambda rounding: rounding.error)
        if best.error < WORTH_A_PASS * found[0].error:
            found = [best]
    if scheme == INT8:
        found.append(_round_in_two_terms(product, activations, measure))
    return tuple(found)


def _round_whole(
    product: TrialProduct, activations: Activations, scheme: str, measure: Measure, strength: float
) -> Rounding:
    """Round the activation once; nothing is cut.

    What cutting outliers does to the error of one product says little of what it does to the model.
    """
    x, peaks, weight = activations.sample, activations.max_abs, product.weight
    divisor = _smooth(peaks, weight, strength) if strength else None
    if divisor is not None:
        x, peaks, weight = x / divisor, peaks / divisor, weight * divisor[:, None]
    rounded = round_to_fp8(weight) if scheme == FP8 else round_to_int8(weight)
    peak = float(peaks.max()) or 1.0
    steps = FP8_MAX if scheme == FP8 else INT8_MAX
    error = measure(round_activation(x, peak / steps, is_float=scheme == FP8), rounded)
    return Rounding(ProductPlan(scheme, None if scheme == INT8_DYNAMIC else peak, divisor), error, strength)


def _round_in_two_terms(product: TrialProduct, activations: Activations, measure: Measure) -> Rounding:
    """Round the activation, and once more what that left."""
    peak = float(activations.max_abs.max()) or 1.0
    step = peak / INT8_MAX
    first = round_activation(activations.sample, step, is_float=False)
    rest = round_activation(activations.sample - first, step / 2 / INT8_MAX, is_float=False)
    error = measure(first + rest, round_to_int8(product.weight))
    return Rounding(ProductPlan(INT8, peak, terms=2), error)


def _smooth(
    max_abs: Float[np.ndarray, " k"], weight: Float[np.ndarray, "k n"], strength: float
) -> Float[np.ndarray, " k"]:
    """Return what each channel is divided by; 1 in the geometric mean, so that magnitudes stay what they are."""
    rows = np.maximum(np.abs(weight).max(axis=1), _TINY)
    logarithm = strength * np.log(np.maximum(max_abs, _TINY)) - (1 - strength) * np.log(rows)
    logarithm[max_abs == 0] = 0.0
    return np.exp(np.clip(logarithm - logarithm.mean(), -_MAX_LOGARITHM, _MAX_LOGARITHM)).astype(np.float32)
