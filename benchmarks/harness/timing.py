"""Timing candidates side by side on a machine that is not quiet.

Each round runs a block of every candidate in turn, so that whatever else the machine does in that round hits all of
them. Rounds in which other processes were busy are repeated; if it never gets quiet, the quietest are kept. A time is
the median over the rounds; a ratio is the median of the ratios of the same round.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flash_export.validators.latency import time_in_turn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_ATTEMPTS_A_ROUND = 2
QUIET_SHARE = 0.05
MAX_RUNS_A_BLOCK = 200
_STAT = Path("/proc/stat")
_IDLE_COLUMNS = (3, 4)  # idle, iowait; what a hypervisor takes, the 8th, counts as taken by others


@dataclass(frozen=True)
class Activity:
    """CPU seconds since some origin: of all processors, and of this process."""

    wall_s: float
    busy_s: float
    own_s: float

    @classmethod
    def read(cls) -> Activity:
        """Read the counters; where there is no /proc, other processes are taken to be idle."""
        own = os.times()
        own_s = own.user + own.system
        try:
            columns = [int(text) for text in _STAT.read_text().split("\n", 1)[0].split()[1:9]]
        except OSError:
            return cls(time.perf_counter(), own_s, own_s)
        ticks = sum(columns) - sum(columns[index] for index in _IDLE_COLUMNS)
        return cls(time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK"), own_s)

    def compute_others_share(self) -> float:
        """Return which share of the processors others took from this reading until now."""
        now = Activity.read()
        others_s = (now.busy_s - self.busy_s) - (now.own_s - self.own_s)
        return max(0.0, others_s / ((now.wall_s - self.wall_s) * (os.cpu_count() or 1)))


@dataclass(frozen=True)
class Effort:
    """How thoroughly is timed.

    A block repeats its function until about ``block_ms`` have passed. Its first run, which finds the caches full of
    another candidate's data, is not counted, unless it is the only one.
    """

    rounds: int = 7  # blocks of each candidate
    block_ms: float = 150.0


QUICK_EFFORT = Effort(1, 1.0)


@dataclass(frozen=True)
class Timings:
    """The rounds that count."""

    rounds_ms: Mapping[str, tuple[float, ...]]  # of a run of each candidate, one number per round
    others_share: tuple[float, ...]  # of the processors, what other processes took, one number per round

    @property
    def medians_ms(self) -> dict[str, float]:
        """The median over the rounds of each candidate."""
        return {name: statistics.median(times) for name, times in self.rounds_ms.items()}

    @property
    def others(self) -> float:
        """The median share of the processors that other processes took."""
        return statistics.median(self.others_share)

    @property
    def spread(self) -> float:
        """The largest interquartile range of a candidate, as a fraction of its median: how noisy it was."""
        if len(self.others_share) < 2:
            return 0.0
        quartiles = [statistics.quantiles(times, n=4) for times in self.rounds_ms.values()]
        return max((upper - lower) / median for lower, median, upper in quartiles)

    def list_ratios(self, slower: str, faster: str) -> list[float]:
        """Return how many times longer ``slower`` takes in each round."""
        return [a / b for a, b in zip(self.rounds_ms[slower], self.rounds_ms[faster], strict=True)]

    def compute_ratio(self, slower: str, faster: str) -> float:
        """Return how many times longer ``slower`` takes: the median of the rounds' ratios."""
        return statistics.median(self.list_ratios(slower, faster))


def time_alternating(candidates: Mapping[str, Callable[[], object]], effort: Effort) -> Timings:
    """Time candidates in alternating blocks; each is called twice before anything is timed."""
    rounds = effort.rounds
    functions = list(candidates.values())
    bursts = [_choose_burst(function, effort.block_ms) for function in functions]
    attempts: list[tuple[float, list[list[float]]]] = []
    while sum(share <= QUIET_SHARE for share, _ in attempts) < rounds and len(attempts) < rounds * MAX_ATTEMPTS_A_ROUND:
        before = Activity.read()
        seconds = time_in_turn(functions, bursts=bursts, budget_s=0, warmup=0, min_runs=1)
        attempts.append((before.compute_others_share(), seconds))
    kept = sorted(attempts, key=lambda attempt: attempt[0])[:rounds]
    return Timings(
        {name: tuple(seconds[index][0] * 1e3 for _, seconds in kept) for index, name in enumerate(candidates)},
        tuple(share for share, _ in kept),
    )


def time_run(function: Callable[[], object]) -> float:
    """Return the milliseconds of one call."""
    started = time.perf_counter()
    function()
    return (time.perf_counter() - started) * 1e3


def _choose_burst(function: Callable[[], object], block_ms: float) -> int:
    """Return the runs of a block, and one that is not counted if they are several."""
    function()
    runs = max(1, min(MAX_RUNS_A_BLOCK, round(block_ms / max(time_run(function), 1e-6))))
    return 1 if runs == 1 else 1 + runs
