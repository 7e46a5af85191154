"""Timing candidates side by side on a machine that is not quiet.

Each round runs a block of every candidate in turn, so that whatever else the machine does in that round hits all of
them. Rounds in which other processes were busy are repeated; if it never gets quiet, the quietest are kept. A time is
the median over the rounds; a ratio is the median of the ratios of the same round.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from activity import Activity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

DEFAULT_ROUNDS = 7
MAX_ATTEMPTS_A_ROUND = 2
QUIET_SHARE = 0.05
DEFAULT_BLOCK_MS = 150.0
MAX_RUNS_A_BLOCK = 200


@dataclass(frozen=True)
class Timings:
    """The rounds that count.

    Attributes:
        rounds_ms: Milliseconds a run of each candidate, one number a round.
        others_share: Share of the processors that other processes took, one number a round.
    """

    rounds_ms: Mapping[str, tuple[float, ...]]
    others_share: tuple[float, ...]

    def get_median_ms(self, name: str) -> float:
        """Return the median over the rounds."""
        return statistics.median(self.rounds_ms[name])

    def compute_ratio(self, slower: str, faster: str) -> float:
        """Return how many times longer ``slower`` takes: the median of the rounds' ratios."""
        pairs = zip(self.rounds_ms[slower], self.rounds_ms[faster], strict=True)
        return statistics.median(a / b for a, b in pairs)

    def get_others_share(self) -> float:
        """Return the median share of the processors that other processes took."""
        return statistics.median(self.others_share)

    def compute_spread(self) -> float:
        """Return the largest interquartile range of a candidate, as a fraction of its median: how noisy it was."""
        return max(_compute_relative_range(times) for times in self.rounds_ms.values())


def time_alternating(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int = DEFAULT_ROUNDS,
    block_ms: float = DEFAULT_BLOCK_MS,
) -> Timings:
    """Time candidates in alternating blocks.

    Args:
        candidates: Name and function; each is called twice before anything is timed.
        rounds: Number of blocks of each candidate.
        block_ms: A block repeats the function until about this much time has passed. Its first run, which finds
            the caches full of another candidate's data, is not counted, unless it is the only one.
    """
    runs = {name: _choose_runs(function, block_ms) for name, function in candidates.items()}
    attempts: list[tuple[float, dict[str, float]]] = []
    while sum(share <= QUIET_SHARE for share, _ in attempts) < rounds and len(attempts) < rounds * MAX_ATTEMPTS_A_ROUND:
        before = Activity.read()
        times: dict[str, float] = {}
        for name, function in candidates.items():
            if runs[name] > 1:
                function()
            times[name] = _time_runs(function, runs[name])
        attempts.append((before.compute_others_share(Activity.read()), times))
    kept = sorted(attempts, key=lambda attempt: attempt[0])[:rounds]
    return Timings(
        {name: tuple(times[name] for _, times in kept) for name in candidates}, tuple(share for share, _ in kept)
    )


def compute_geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of positive numbers."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


def _choose_runs(function: Callable[[], object], block_ms: float) -> int:
    function()
    return max(1, min(MAX_RUNS_A_BLOCK, round(block_ms / max(_time_runs(function, 1), 1e-6))))


def _time_runs(function: Callable[[], object], runs: int) -> float:
    """Return the mean milliseconds of ``runs`` calls."""
    started = time.perf_counter()
    for _ in range(runs):
        function()
    return (time.perf_counter() - started) / runs * 1e3


def _compute_relative_range(times: tuple[float, ...]) -> float:
    if len(times) < 2:
        return 0.0
    lower, median, upper = statistics.quantiles(times, n=4)
    return (upper - lower) / median
