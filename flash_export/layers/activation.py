"""Attention functions: what FLASH applies to the scores in place of a softmax."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from torch import Tensor

RELU2, LAPLACE, LAPLACE_WIDE = "relu2", "laplace", "laplace_wide"
LAPLACE_MEAN = math.sqrt(0.5)
# Mega's, and that of flash-pytorch 0.1.6, which had the quotient upside down.
LAPLACE_STDS = {LAPLACE: math.sqrt(1 / (4 * math.pi)), LAPLACE_WIDE: math.sqrt(math.pi / 4)}


def relu_squared(x: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Return ``max(x, 0)**2`` (arXiv 2202.10447, section 3.1)."""
    return torch.relu(x).square()


def laplace(x: Float[Tensor, ...], std: float = LAPLACE_STDS[LAPLACE]) -> Float[Tensor, ...]:
    """Return the Laplace attention function of Mega (arXiv 2209.10655, equation 10).

    It is not 0 at 0, so that padded keys count unless their values are masked.
    """
    return 0.5 * (1 + torch.erf((x - LAPLACE_MEAN) / (std * math.sqrt(2))))


ATTENTION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    RELU2: relu_squared,
    **{name: partial(laplace, std=std) for name, std in LAPLACE_STDS.items()},
}
