"""How much a model magnifies what float32 rounds, so that tests tell rounding from a fault."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    Run = Callable[[nn.Module], Tensor]
    Compare = Callable[[Tensor, Tensor], float]

NUM_SHAKES = 3


def measure_rounding(model: nn.Module, run: Run, compare: Compare) -> float:
    """Return the largest error of a float64 model whose weights are off by as much as float32 rounds them."""
    exact = copy.deepcopy(model).double()
    expected = run(exact)
    errors = []
    for _ in range(NUM_SHAKES):
        shaken = copy.deepcopy(exact)
        with torch.no_grad():
            for parameter in shaken.parameters():
                parameter.mul_(1 + torch.finfo(torch.float32).eps / 2 * torch.randn_like(parameter))
        errors.append(compare(expected, run(shaken)))
    return max(errors)
