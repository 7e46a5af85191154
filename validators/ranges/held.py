"""Which quantities an fp16 graph holds in fp32, so that they cannot overflow there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.probes import Point
from flash_export.validators.ranges.measure import SQUARES

if TYPE_CHECKING:
    from flash_export.bundle.manifest import PrecisionFacts
    from flash_export.models.base import ModelConfig
    from flash_export.validators.ranges.results import Held

# What islands call a quantity, where that is another name.
_ISLAND_NAMES = {
    "embedding": "residual",
    "out": "residual",
    "quad_q": "heads",
    "quad_k": "heads",
    "lin_q": "heads",
    "lin_k": "heads",
    "q": "heads",
    "k": "heads",
}


def find_held(config: ModelConfig, name: str, facts: PrecisionFacts | None) -> Held | None:
    """Return by what a quantity is fp32 in a half-precision graph; None: it is half, or may become so.

    Args:
        config: The model's.
        name: The quantity, such as ``layers.3.kv``.
        facts: The islands of the bundle; None for an fp32 bundle, whose later exports may choose others.
    """
    point = Point.parse(name)
    if point.quantity == SQUARES or config.quantities[point.quantity].is_fp32:
        return "always"
    own = _ISLAND_NAMES.get(point.quantity, point.quantity)
    island = own if point.block is None else f"layers.{point.block}.{own}"
    return "island" if facts is not None and any(one.name == island for one in facts.islands) else None
