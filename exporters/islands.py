"""Choosing the islands of fp32 in a half-precision graph, and the length to which it holds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.bundle.manifest import Horizon, Island, PrecisionFacts
from flash_export.errors import ConfigError
from flash_export.exporters.graphs import find_longest
from flash_export.exporters.half_ranges import measure_half_ranges
from flash_export.exporters.lowering.precision import Precision
from flash_export.exporters.lowering.registry import LOWERINGS
from flash_export.ranges.growth import FP16_MAX

if TYPE_CHECKING:
    from flash_export.config import ExportOptions
    from flash_export.data.sources import Data
    from flash_export.exporters.half_ranges import HalfRanges
    from flash_export.models.base import ReferenceModel

# Other text gives other values: random tokens, which no model was trained on, gave up to 3.5 times those of text
# (docs/precision.md).
MARGIN = 4.0
LIMIT = FP16_MAX / MARGIN


@dataclass(frozen=True)
class IslandChoice:
    """A precision for the lowering, and what the manifest says of it."""

    precision: Precision
    facts: PrecisionFacts


def choose_islands(model: ReferenceModel, data: Data, options: ExportOptions) -> IslandChoice:
    """Choose the islands of a model.

    bf16 has the range of fp32, so that nothing has to be measured.

    Args:
        model: The reference model.
        data: What there is to feed it with.
        options: Precision, islands, and the longest sequence.

    Raises:
        ConfigError: ``islands`` is ``minimal`` and a value would overflow within the longest sequence; or the model
            leaves the range of fp32 too.
    """
    growing = LOWERINGS[model.config.model_type].name_growing(model.config)
    asked = growing if options.islands == "all" else frozenset()
    reasons = dict.fromkeys(sorted(asked), "asked for")
    if options.precision != "fp16":
        return _make_choice(options, reasons, None, None)
    longest = find_longest(model.config.interface, options)
    ranges = measure_half_ranges(model, data, longest)
    _check_finite(ranges)
    horizons = {name: ranges.find_horizon(name, LIMIT) for name in ranges.magnitudes}
    if options.islands != "minimal":
        short = (name for name, horizon in horizons.items() if horizon <= longest)
        reasons |= {name: _describe(ranges, name, horizons[name]) for name in short}
    horizon = _find_first({name: value for name, value in horizons.items() if name not in reasons}, ranges)
    if horizon is not None and horizon.seq_len <= longest:
        cure = f"or --max-seq-len {horizon.seq_len - 1}" if horizon.seq_len > ranges.seq_lens[0] else "or bf16"
        interface = model.config.interface
        subject = f"max_seq_len={longest} is" if interface.fixed_len is None else f"{longest} {interface.unit} are"
        raise ConfigError(
            f"{subject} beyond the overflow horizon of fp16 without further islands: "
            f"{horizon.quantity} {_describe(ranges, horizon.quantity, horizon.seq_len)}; use --islands auto, {cure}"
        )
    return _make_choice(options, reasons, horizon, ranges)


def _make_choice(
    options: ExportOptions, reasons: dict[str, str], horizon: Horizon | None, ranges: HalfRanges | None
) -> IslandChoice:
    facts = PrecisionFacts(
        precision=options.precision,
        mode=options.islands,
        islands=tuple(Island(name, reason) for name, reason in reasons.items()),
        horizon=horizon,
        data=ranges.data if ranges else None,
        seq_lens=ranges.seq_lens if ranges else (),
    )
    return IslandChoice(Precision(options.precision, frozenset(reasons)), facts)


def _check_finite(ranges: HalfRanges) -> None:
    for name, sizes in ranges.magnitudes.items():
        for seq_len, size in zip(ranges.seq_lens, sizes, strict=True):
            if not math.isfinite(size):
                raise ConfigError(
                    f"{name} is {size} at seq_len={seq_len} in fp32 already, so that no island holds it; "
                    "check the weights with 'flash-export profile-ranges' on an fp32 bundle"
                )


def _find_first(horizons: dict[str, float], ranges: HalfRanges) -> Horizon | None:
    """Return the earliest horizon, None if all are at infinity."""
    name = min(horizons, key=lambda name: horizons[name])
    if not math.isfinite(horizons[name]):
        return None
    early, late = (_round(end) for end in ranges.fit(name, LIMIT).horizon_interval)
    return Horizon(name, int(horizons[name]), (early, late))


def _round(length: float | None) -> int | None:
    return None if length is None else int(length)


def _describe(ranges: HalfRanges, name: str, horizon: float) -> str:
    """Say how large a value is, and where it leaves the range that is left to it."""
    passed = [(n, size) for n, size in zip(ranges.seq_lens, ranges.magnitudes[name], strict=True) if size > LIMIT]
    if passed:
        seq_len, size = passed[0]
        return f"reaches {size:.2g} at {seq_len} {ranges.unit}, more than a quarter of fp16's {FP16_MAX:.0f}"
    return (
        f"reaches {ranges.magnitudes[name][-1]:.2g} at {ranges.seq_lens[-1]} {ranges.unit} and a quarter of fp16's "
        f"{FP16_MAX:.0f} at about {int(float(f'{horizon:.2g}')):,}"
    )
