"""Comparisons for the tests of their renderers, made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flash_export.validators.footprint import Footprint
from flash_export.validators.latency import Percentiles, Ratio
from flash_export.validators.trade_off.results import Entry, Quality, Timing, TradeOff
from tests.validators.report.builders import BITS, MEASURES

MIB = 1 << 20
REASON = "it cannot be run here: no kernel of <float8> & co"


def make_timing(seq_len: int | None, p50: float, ratio: float) -> Timing:
    latency = Percentiles(p50, 1.5 * p50, 2 * p50, 0.95 * p50, 1.05 * p50, 20)
    return Timing(seq_len, latency_ms=latency, ratio=Ratio(ratio, 0.9 * ratio, 1.1 * ratio))


def make_entry(name: str, mib: float, bits: float, kl: float, ratio: float = 1.0, **changes: Any) -> Entry:
    """A causal bundle whose reference has 4 MiB and 1.5 bits per byte, and takes 20 and 80 ms, and 1 ms per step."""
    entry = Entry(
        name,
        f"bundles/{name}",
        name,
        {"forward": round(mib * MIB), "decode": round(mib * MIB)},
        mib / 4,
        Quality(score=bits, change=bits / 1.5 - 1, measures={"top1_agreement": 0.98765, "kl_bits": kl}),
        (make_timing(512, 20 * ratio, ratio), make_timing(2048, 80 * ratio, ratio)),
        make_timing(None, ratio, ratio),
        Footprint("ort-cpu", session_bytes=10 * MIB, peak_bytes=20 * MIB),
    )
    return replace(entry, **changes)


FP32 = make_entry("fp32", 4.0, 1.5, 1e-12)
FP16 = make_entry("fp16", 2.0, 1.5003, 1e-6, 1.4)
INT8 = make_entry("int8", 1.2, 1.504, 3e-4, 0.6)
INT4 = make_entry("int4", 0.9, 1.53, 2e-2, 0.8)
FP8 = make_entry(
    "fp8",
    1.1,
    0.0,
    0.0,
    quality=Quality(REASON),
    timings=(Timing(512, REASON), Timing(2048, REASON)),
    decode=Timing(None, REASON),
    footprint=Footprint("ort-cpu", REASON),
)


def make_trade_off(*entries: Entry, **changes: Any) -> TradeOff:
    environment: dict[str, str | int] = {"torch": "2.13", "cpu": "a processor"}
    trade = TradeOff(entries, "held-out text", "tokens", MEASURES, BITS, 66_000, 1.5, 1, "ort-cpu", environment)
    return replace(trade, **changes)


FULL = make_trade_off(FP32, FP16, INT8, INT4, FP8)


def make_untimed(entry: Entry) -> Entry:
    return replace(entry, timings=(), decode=None, footprint=None)
