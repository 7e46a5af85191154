"""What a profile of ranges found, as frozen dataclasses with a JSON form."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flash_export.probes import Point
from flash_export.ranges.growth import FP16_MAX

if TYPE_CHECKING:
    from flash_export.ranges.growth import Growth


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
        growth: How the largest magnitude in the graph grows.
        label: What the model calls it, without the block.
    """

    name: str
    points: tuple[RangePoint, ...]
    growth: Growth
    label: str

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
        """How many times the largest magnitude in the graph fits into fp16."""
        largest = max(point.graph_max_abs for point in self.points)
        return FP16_MAX / largest if largest else math.inf

    @property
    def urgency(self) -> tuple[float, float]:
        """Sorts the worst first: by the horizon, then by the headroom."""
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
    """

    bundle: str
    data: str
    seq_lens: tuple[int, ...]
    max_seq_len: int
    rows: tuple[RangeRow, ...]
    stopped: str = ""

    def to_json(self) -> str:
        """Return strict JSON; what is not finite in the model itself is null."""
        return json.dumps(_drop_infinities(dataclasses.asdict(self)), indent=2, allow_nan=False) + "\n"


def _drop_infinities(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _drop_infinities(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_drop_infinities(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
