"""The targets, judged from the rows: reached, missed, or not measured, and at which length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from flash_export.config import FLAVOURS
from gpu.limits import name_rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu.rows import RowFile
    from gpu.sizes import Sizes

HALVES = ("bf16", "fp16")
RATE_SHARE, RATE_FROM = 0.5, 8192


@dataclass(frozen=True)
class Verdict:
    """How a target came out.

    Attributes:
        name: What was to be reached.
        at_least: The target.
        value: What was, at the length where it is least, in the better of bf16 and fp16; None: it was not measured.
        where: Which engine, precision and length that is.
        status: What came out.
    """

    name: str
    at_least: float
    value: float | None
    where: str
    status: Literal["reached", "missed", "not measured"]


def judge_targets(file: RowFile, sizes: Sizes) -> list[Verdict]:
    """Judge all of them; a target over several lengths is reached if it is at each, and all were measured."""
    every = sizes.seq_lens
    long = tuple(n for n in every if n >= RATE_FROM)
    return [
        _judge_ratio(file, "engine against eager", "eager", 3.0, every),
        _judge_ratio(file, "engine against compile", "compile", 1.3, every),
        _judge_ratio(file, "engine against Transformer at 2,048 tokens", "Transformer", 1.0, (2048,)),
        _judge_ratio(file, "engine against Transformer at 16,384 tokens", "Transformer", 4.0, (16384,)),
        _judge(
            f"share of the measured matrix rate from {RATE_FROM:,} tokens on",
            RATE_SHARE,
            long,
            lambda engine, precision, n: compute_rate_share(file, sizes, f"{engine} {precision}", precision, n),
        ),
    ]


def compute_rate_share(file: RowFile, sizes: Sizes, candidate: str, precision: str, seq_len: int) -> float | None:
    """Return which share of the card's matrix rate the model's products reach; None if one was not measured."""
    row, limit = file.find("forward", candidate, seq_len), file.find("limit", name_rate(precision))
    if row is None or limit is None or row.latency_ms is None or limit.value is None:
        return None
    return 2 * sizes.config.count_macs(seq_len) / (row.latency_ms * 1e-3) / limit.value


def compute_ratio(file: RowFile, candidate: str, baseline: str, seq_len: int) -> float | None:
    """Return how many times as long the baseline takes for a text; None if one was not measured."""
    ours, theirs = (file.find("forward", name, seq_len) for name in (candidate, baseline))
    if ours is None or theirs is None or not ours.latency_ms or not theirs.latency_ms:
        return None
    return theirs.latency_ms / ours.latency_ms


def _judge_ratio(file: RowFile, name: str, baseline: str, at_least: float, seq_lens: tuple[int, ...]) -> Verdict:
    return _judge(
        name,
        at_least,
        seq_lens,
        lambda engine, precision, n: compute_ratio(file, f"{engine} {precision}", f"{baseline} {precision}", n),
    )


def _judge(
    name: str, at_least: float, seq_lens: tuple[int, ...], measure: Callable[[str, str, int], float | None]
) -> Verdict:
    """Take the engine and precision that is best at its worst length."""
    best: tuple[float, str] | None = None
    for engine in (f"engine {flavour}" for flavour in FLAVOURS):
        for precision in HALVES:
            values = {n: measure(engine, precision, n) for n in seq_lens}
            known = {n: value for n, value in values.items() if value is not None}
            if not known or len(known) < len(values):
                continue
            worst = min(known, key=lambda n: known[n])
            if best is None or known[worst] > best[0]:
                best = known[worst], f"{engine} {precision}, {worst:,} tokens"
    if best is None:
        return Verdict(name, at_least, None, "", "not measured")
    return Verdict(name, at_least, *best, "reached" if best[0] >= at_least else "missed")
