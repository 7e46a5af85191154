"""Rounding a product outside of a graph, to see what that costs.

Axes: m sampled positions, k input of a product, n output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from flash_export.exporters.quantization.recipe import ProductRecipe

if TYPE_CHECKING:
    from jaxtyping import Float

    from flash_export.exporters.quantization.numbers import NumberFormat, QuantizedWeight
    from flash_export.exporters.quantization.recipe import Scheme

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
        recipe: What the graph is to do.
        error: Root mean square of the error of the product, as a fraction of that of the product; NaN: not measured.
        strength: How much of the outliers moved into the weights.
    """

    recipe: ProductRecipe
    error: float = math.nan
    strength: float = 0.0


@dataclass(frozen=True)
class ProductSample:
    """A product and what it was given, on which ways to round it are measured.

    Attributes:
        weight: The weight, ``(k, n)``.
        x: Activations at some of the positions, ``(m, k)``.
        max_abs: Largest magnitude of each channel over all positions, ``(k,)``.
    """

    weight: Float[np.ndarray, "k n"]
    x: Float[np.ndarray, "m k"]
    max_abs: Float[np.ndarray, " k"]

    @cached_property
    def exact(self) -> Float[np.ndarray, "m n"]:
        """The product that nothing is rounded of."""
        return self.x @ self.weight

    def measure_error(self, x: Float[np.ndarray, "m k"], weight: QuantizedWeight) -> float:
        """Return the error of the product of factors that may be rounded, see :attr:`Rounding.error`."""
        scale = float(np.square(self.exact).mean()) or 1.0
        return float(np.sqrt(np.square(x @ weight.dequantize() - self.exact).mean() / scale))

    def round_factors(self, scheme: Scheme, numbers: NumberFormat, strength: float = 0.0) -> Rounding:
        """Round the activation once; nothing is cut.

        What cutting outliers does to the error of one product says little of what it does to the model.
        """
        x, peaks, weight, divisor = self.x, self.max_abs, self.weight, None
        if strength:
            divisor = _smooth(peaks, weight, strength)
            x, peaks, weight = x / divisor, peaks / divisor, weight * divisor[:, None]
        peak = compute_peak(peaks)
        error = self.measure_error(numbers.round_activation(x, peak / numbers.max), numbers.round_weight(weight))
        return Rounding(ProductRecipe(scheme, peak, divisor), error, strength)

    def round_smoothed(self, scheme: Scheme, numbers: NumberFormat, *, smoothing: bool) -> Rounding:
        """Round the activation once, smoothed if it may be and that is worth it."""
        rough = self.round_factors(scheme, numbers)
        if not smoothing:
            return rough
        smoothed = (self.round_factors(scheme, numbers, strength) for strength in STRENGTHS)
        best = min(smoothed, key=lambda rounding: rounding.error)
        return best if best.error < WORTH_A_PASS * rough.error else rough


def compute_peak(max_abs: Float[np.ndarray, " k"]) -> float:
    """Return the largest magnitude; what is all zeros needs one too."""
    return float(max_abs.max()) or 1.0


def _smooth(
    max_abs: Float[np.ndarray, " k"], weight: Float[np.ndarray, "k n"], strength: float
) -> Float[np.ndarray, " k"]:
    """Return what each channel is divided by; 1 in the geometric mean, so that magnitudes stay what they are."""
    rows = np.maximum(np.abs(weight).max(axis=1), _TINY)
    logarithm = strength * np.log(np.maximum(max_abs, _TINY)) - (1 - strength) * np.log(rows)
    logarithm[max_abs == 0] = 0.0
    return np.exp(np.clip(logarithm - logarithm.mean(), -_MAX_LOGARITHM, _MAX_LOGARITHM)).astype(np.float32)
