"""How far a graph may be from the reference inside the model before that is a fault."""

from __future__ import annotations

# Another order of summation gives a few times the error of the eager model, a fault at least hundreds of times.
BUDGET = 16.0
# A quantity may happen to have almost no error in the eager model: below these nothing is told from rounding.
FLOORS = {"fp32": 2e-6, "fp16": 2e-3, "bf16": 2e-2}


def compute_limit(noise: float, precision: str) -> float:
    """Return the largest accepted relative error of a quantity.

    Args:
        noise: Relative error of the eager model in fp32.
        precision: Precision of the graph, as its manifest says; unknown ones are taken for the coarsest.
    """
    return BUDGET * max(noise, _get_floor(precision))


def pick_coarser(left: str, right: str) -> str:
    """Return which of two precisions rounds more."""
    return max(left, right, key=_get_floor)


def _get_floor(precision: str) -> float:
    return FLOORS.get(precision, max(FLOORS.values()))
