"""How far a graph may be from the reference inside the model before that is a fault: the budget of the whole model."""

from __future__ import annotations

import math

from flash_export.limits import ERROR_BUDGETS, QUANTIZATION_BUDGETS


def compute_limit(noise: float | None, precision: str) -> float:
    """Return the largest accepted relative error of a quantity.

    Args:
        noise: Relative error of the eager model in the graph's precision; None where there is none: of a quantized
            graph, and where two graphs are compared.
        precision: Precision of the graph, as its manifest says.
    """
    known = noise if noise is not None and math.isfinite(noise) else math.nan
    return (QUANTIZATION_BUDGETS | ERROR_BUDGETS)[precision].compute_limit(1.0, known)


def pick_coarser(*precisions: str) -> str:
    """Return which of some precisions rounds most."""
    return max(precisions, key=lambda precision: compute_limit(None, precision))
