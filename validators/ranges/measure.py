"""Measuring the ranges of the quantities inside a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.probes import Point

if TYPE_CHECKING:
    from torch import Tensor

    from flash_export.data.batch import Batch
    from flash_export.models.base import ModelConfig, ReferenceModel
    from flash_export.runtime.runner import Runner

# The sum of squares that a norm forms of one token.
SQUARES = "norm_squares"


@dataclass(frozen=True)
class Range:
    """Largest magnitude and root mean square of a quantity."""

    max_abs: float
    rms: float


def measure_ranges(model: ReferenceModel, runner: Runner, batch: Batch) -> dict[str, Range]:
    """Return the range of each probe, and of the sums of squares in the norms.

    Args:
        model: The reference model.
        runner: What runs it.
        batch: What it reads, without padding.
    """
    found: dict[str, Range] = {}

    def read(name: str, values: Tensor) -> None:
        found[name] = _measure(values)
        if (norm := _name_norm(model.config, name)) is not None:
            found[norm] = _measure(values.square().sum(dim=-1))

    with model.read_probes(read):
        runner.run(batch.to_model_inputs(masked=False))
    return found


def describe_quantity(config: ModelConfig, name: str) -> str:
    """Name what was measured in the model's terms, without the block."""
    point = Point.parse(name)
    if point.quantity == SQUARES:
        return "sum of squares in the last norm" if point.block is None else "sum of squares in the norm"
    return config.quantities[point.quantity].label


def _measure(values: Tensor) -> Range:
    return Range(float(values.abs().max()), float(values.square().mean().sqrt()))


def _name_norm(config: ModelConfig, name: str) -> str | None:
    """Return the name of the sum of squares that the norm which reads a quantity forms; None: no norm does.

    The last norm reads what the last block returns, unless something stands in between.
    """
    point, quantities = Point.parse(name), config.quantities
    quantity = quantities[point.quantity]
    if not quantity.is_normed:
        return None
    if point.block is None:
        return f"layers.0.{SQUARES}" if quantity.place == "before" else SQUARES
    last = [name for name, one in quantities.items() if one.place == "block"][-1]
    block = point.block + (point.quantity == last)
    if block < config.num_blocks:
        return f"layers.{block}.{SQUARES}"
    return None if any(one.is_normed for one in quantities.values() if one.place == "after") else SQUARES
