"""The graphs that a ``flash`` model is exported as."""

from __future__ import annotations

from flash_export.config import DECODE, EXTEND, PREFILL
from flash_export.exporters.lowering.base import Lowering, StateGraphs
from flash_export.exporters.lowering.flash import LoweredFlash
from flash_export.exporters.lowering.flash_decode import DecodeFlash
from flash_export.exporters.lowering.flash_extend import ExtendFlash
from flash_export.exporters.lowering.flash_prefill import PrefillFlash
from flash_export.exporters.lowering.flash_state import describe_state

FLASH = Lowering(
    LoweredFlash,
    growing=("weights", "quadratic", "products", "kv", "linear", "mixed", "gated", "update", "residual"),
    growing_around=lambda _: ("residual", "logits"),
    bounded=frozenset(
        {"table", "turns", "valid", "normed", "value", "gate", "heads", "scores", "weights", "quadratic", "logits"}
    ),
    state=StateGraphs({PREFILL: PrefillFlash, EXTEND: ExtendFlash, DECODE: DecodeFlash}, describe_state),
)
