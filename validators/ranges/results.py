"""What a profile of ranges found, as frozen dataclasses with a JSON form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from flash_export.probes import Point
from flash_export.ranges.growth import FP16_MAX, FP32_MAX, Growth
from flash_export.strict_json import format_json

# What holds a quantity in fp32: every export in half precision, or an island of this bundle.
Held = Literal["always", "island"]


@dataclass(frozen=True)
class RangePoint:
    """The range of a quantity at one length.

    Attributes:
        seq_len: Length.
        max_abs: Largest magnitude in the reference model.
        rms: Root mean square there.
        graph_max_abs: Largest magnitude in the exported graph, which may hold the quantity in another scale.
    """

    seq_len: int
    max_abs: float
    rms: float
    graph_max_abs: float


@dataclass(frozen=True)
class RangeRow:
    """A quantity over all lengths.

    Attributes:
        name: Such as ``layers.3.kv``.
        points: By length, ascending.
        growth: How the largest magnitude in the graph grows, towards the end of fp16, or of fp32 where it is held.
        label: What the model calls it, without the block.
        held: By what an fp16 graph holds it in fp32; None: it is fp16 there.
    """

    name: str
    points: tuple[RangePoint, ...]
    growth: Growth
    label: str
    held: Held | None = None

    @property
    def block(self) -> int | None:
        """The block; None for what is around the blocks."""
        return Point.parse(self.name).block

    @property
    def place(self) -> str:
        """Name it with its block."""
        return self.label if self.block is None else f"block {self.block}, {self.label}"

    @property
    def headroom(self) -> float:
        """How many times the largest magnitude in the graph fits into fp16, or into fp32 where it is held."""
        return (FP32_MAX if self.held else FP16_MAX) / self.largest if self.largest else math.inf

    @property
    def largest(self) -> float:
        """Largest magnitude in the graph."""
        return max(point.graph_max_abs for point in self.points)

    @property
    def urgency(self) -> tuple[float, float]:
        """Sorts the worst first: by the horizon, then by the headroom; what is held comes last."""
        horizon = self.growth.horizon
        return (math.inf if horizon is None else horizon, self.headroom)


@dataclass(frozen=True)
class RangesReport:
    """Everything that a profile of ranges found.

    Attributes:
        bundle: The bundle.
        data: What the model read, such as ``held-out text`` or ``random tokens``.
        seq_lens: Measured lengths.
        max_seq_len: Longest that the graph promises.
        rows: The quantities, the worst first.
        stopped: Why no longer text was measured; empty if the longest that there is was.
        precision: Of the bundle's graph.
        unit: What lengths count.
    """

    bundle: str
    data: str
    seq_lens: tuple[int, ...]
    max_seq_len: int
    rows: tuple[RangeRow, ...]
    stopped: str = ""
    precision: str = "fp32"
    unit: str = "tokens"

    def to_json(self) -> str:
        """Return strict JSON; what is not finite in the model itself is null."""
        return format_json(self)
