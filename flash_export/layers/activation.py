"""Attention functions: what FLASH applies to the scores in place of a softmax."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from torch import Tensor

LAPLACE_MEAN = math.sqrt(0.5)
LAPLACE_STD = math.sqrt(1 / (4 * math.pi))


def relu_squared(x: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Return ``max(x, 0)**2`` (arXiv 2202.10447, section 3.1)."""
    return torch.relu(x).square()


def laplace(x: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Return the Laplace attention function of Mega (arXiv 2209.10655, equation 10).

    It is not 0 at 0, so that padded keys count unless their values are masked.
    """
    return 0.5 * (1 + torch.erf((x - LAPLACE_MEAN) / (LAPLACE_STD * math.sqrt(2))))


ATTENTION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu2": relu_squared, "laplace": laplace}
