"""Measuring the ranges of the quantities inside a model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from flash_export.models.base import ReferenceModel
    from flash_export.runtime.runner import Runner

# The sum of squares that a norm forms of one token. What a norm reads is the embedding, or the block before it.
SQUARES = "norm_squares"


@dataclass(frozen=True)
class Range:
    """Largest magnitude and root mean square of a quantity."""

    max_abs: float
    rms: float


def measure_ranges(model: ReferenceModel, runner: Runner, input_ids: np.ndarray) -> dict[str, Range]:
    """Return the range of each probe, and of the sums of squares in the norms.

    Args:
        model: The reference model.
        runner: What runs it.
        input_ids: Token ids ``(batch, seq)``.
    """
    depth = int(model.config.to_dict()["depth"])
    found: dict[str, Range] = {}

    def read(name: str, values: Tensor) -> None:
        found[name] = _measure(values)
        if (norm := _name_next_norm(name, depth)) is not None:
            found[norm] = _measure(values.square().sum(dim=-1))

    with model.read_probes(read):
        runner.run({"input_ids": input_ids})
    return found


def _measure(values: Tensor) -> Range:
    return Range(float(values.abs().max()), float(values.square().mean().sqrt()))


def _name_next_norm(name: str, depth: int) -> str | None:
    """Return the name of the sum of squares that the norm after a residual stream forms."""
    if name == "embedding":
        return f"layers.0.{SQUARES}"
    match = re.fullmatch(r"layers\.(\d+)\.out", name)
    if match is None:
        return None
    following = int(match[1]) + 1
    return f"layers.{following}.{SQUARES}" if following < depth else SQUARES
