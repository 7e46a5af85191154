"""How far a graph may be from the reference inside the model before that is a fault: the budget of the whole model."""

from __future__ import annotations

import math

from flash_export.config import ERROR_BUDGETS

# Of precisions that have no budget, such as those of quantized graphs.
_COARSEST = max(ERROR_BUDGETS, key=lambda name: ERROR_BUDGETS[name].floor)


def compute_limit(noise: float | None, precision: str) -> float:
    """Return the largest accepted relative error of a quantity.

    Args:
        noise: Relative error of the eager model in the graph's precision; None where two graphs are compared.
        precision: Precision of the graph, as its manifest says.
    """
    known = noise if noise is not None and math.isfinite(noise) else math.nan
    return ERROR_BUDGETS[pick_coarser(precision)].compute_limit(1.0, known)


def pick_coarser(*precisions: str) -> str:
    """Return which of some precisions rounds most; the coarsest that has a budget for one that has none."""
    known = [name if name in ERROR_BUDGETS else _COARSEST for name in precisions]
    return max(known, key=lambda name: ERROR_BUDGETS[name].floor)
