"""How large the values become that a half-precision graph would hold, measured in the lowered model itself.

The lowered model runs in fp32 in the terms of the half graph, and shows each value that would be narrowed: so nothing
that the graph holds is left out, and no scale has to be known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from flash_export.data.sources import count_rows
from flash_export.exporters.lowering.precision import Precision
from flash_export.exporters.lowering.registry import LOWERINGS, lower_model
from flash_export.ranges.growth import fit_growth

if TYPE_CHECKING:
    from torch import Tensor

    from flash_export.data.sources import Data
    from flash_export.models.base import ModelConfig, ReferenceModel
    from flash_export.ranges.growth import Growth

WINDOWS = 2
MIN_LENGTHS = 3  # below, no growth can be told from chance
# Multiply-accumulates that the measurement may take, a few seconds on two cores. A time would not do: the choice of
# islands must not depend on how busy a machine is.
BUDGET_MACS = 5e10


@dataclass(frozen=True)
class HalfRanges:
    """The largest magnitude of each value, by length.

    Attributes:
        data: What was read, such as ``held-out text`` or ``random tokens``.
        unit: What lengths count.
        seq_lens: Measured lengths, ascending.
        magnitudes: By the value's name, one per length; a weight counts at every length.
        bounded: Values that do not grow with the length, by the name in their block; see :class:`Lowering`.
    """

    data: str
    unit: str
    seq_lens: tuple[int, ...]
    magnitudes: dict[str, tuple[float, ...]]
    bounded: frozenset[str]

    def fit(self, name: str, limit: float) -> Growth:
        """Return how a value grows, as a power of the length."""
        return fit_growth(self.seq_lens, self.magnitudes[name], limit)

    def find_horizon(self, name: str, limit: float) -> float:
        """Return the length at which a value may pass a limit: the earlier of the fitted power and of proportion.

        It is infinite for what does not grow.
        """
        passed = [n for n, size in zip(self.seq_lens, self.magnitudes[name], strict=True) if not size <= limit]
        if passed:
            return float(passed[0])
        if name.rpartition(".")[2] in self.bounded or self.magnitudes[name][-1] == 0:
            return math.inf
        in_proportion = self.seq_lens[-1] * limit / self.magnitudes[name][-1]
        return min(in_proportion, self.fit(name, limit).horizon or math.inf)


class _Watch:
    """Keeps the largest magnitude of each value; of a bias that hides the future, nothing is shown."""

    def __init__(self) -> None:
        self.largest: dict[str, float] = {}

    def __call__(self, name: str, x: Tensor) -> None:
        low, high = torch.aminmax(x.detach())
        size = float(torch.maximum(-low, high))
        # NaN compares as false with everything, and must win.
        if not size <= self.largest.get(name, -1.0):
            self.largest[name] = size


def measure_half_ranges(model: ReferenceModel, data: Data, max_seq_len: int) -> HalfRanges:
    """Measure a model on its held-out data, or on random inputs where that is missing or too short.

    Args:
        model: The reference model.
        data: What there is to feed it with.
        max_seq_len: Longest length that matters.

    Returns:
        The magnitudes in the terms of an fp16 graph.
    """
    watch = _Watch()
    lowered = lower_model(model, Precision("fp16", watch=watch))
    weights = dict(watch.largest)
    source, found = data.preferred, dict[int, dict[str, float]]()
    for seq_len in plan_lengths(model.config, max_seq_len):
        count = count_rows(source, seq_len, WINDOWS)
        if not count:
            source, found, count = data.random, {}, WINDOWS
        watch.largest = dict(weights)
        inputs = source.take(count, seq_len).to_model_inputs(masked=False)
        with torch.inference_mode():
            lowered(*map(torch.from_numpy, inputs.values()))
        found[seq_len] = watch.largest
    names = list(next(iter(found.values())))
    magnitudes = {name: tuple(sizes[name] for sizes in found.values()) for name in names}
    return HalfRanges(
        source.label,
        model.config.interface.unit,
        tuple(found),
        magnitudes,
        LOWERINGS[model.config.model_type].bounded,
    )


def plan_lengths(config: ModelConfig, max_seq_len: int) -> list[int]:
    """Return ascending lengths, each twice the one before.

    They end with the longest that the budget allows, and begin with two chunks if three lengths fit in between: within
    one chunk nothing has a past to sum.
    """
    interface = config.interface
    if interface.fixed_len is not None:
        return [interface.fixed_len]
    shortest, longest = max(interface.find_length(2 * interface.window), interface.min_len), max_seq_len
    while longest > shortest and 2 * WINDOWS * config.count_macs(longest) > BUDGET_MACS:
        longest //= 2
    lengths = [longest]
    while lengths[0] >= 2 * shortest or (len(lengths) < MIN_LENGTHS and lengths[0] >= 2 * interface.min_len):
        lengths.insert(0, lengths[0] // 2)
    return lengths
