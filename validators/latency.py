"""Timing runners against each other on the same inputs."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEFAULT_BUDGET_S = 0.5
MIN_RUNS = 3
MAX_RUNS = 1000
_TAIL = 0.025


@dataclass(frozen=True)
class Percentiles:
    """Percentiles of a latency, in milliseconds, and how well the median is known.

    Attributes:
        p50: The median.
        p90: 90 % of the runs take less.
        p99: 99 % of the runs take less.
        p50_low: Lower end of the median's 95 % confidence interval.
        p50_high: Its upper end.
        runs: Number of runs.
    """

    p50: float
    p90: float
    p99: float
    p50_low: float
    p50_high: float
    runs: int

    @classmethod
    def from_seconds(cls, samples: Sequence[float]) -> Percentiles:
        """Summarise samples given in seconds."""
        ordered = np.sort(np.asarray(samples) * 1000)
        p50, p90, p99 = np.percentile(ordered, (50, 90, 99)).tolist()
        low, high = find_median_interval(len(ordered))
        return cls(p50, p90, p99, float(ordered[low]), float(ordered[high]), len(ordered))

    def overlaps(self, other: Percentiles) -> bool:
        """Tell whether the intervals of the medians have anything in common: then neither is surely the faster."""
        return self.p50_low <= other.p50_high and other.p50_low <= self.p50_high


@dataclass(frozen=True)
class Ratio:
    """How many times as long one takes as another, and how well that is known.

    Attributes:
        median: Median over the turns of the ratio within a turn, which what slows a whole turn down does not change.
        low: Lower end of its 95 % confidence interval.
        high: Its upper end.
    """

    median: float
    low: float
    high: float

    @classmethod
    def from_seconds(cls, samples: Sequence[float], baseline: Sequence[float]) -> Ratio:
        """Compare samples with those of the same turns."""
        ordered = np.sort(np.asarray(samples) / np.asarray(baseline))
        low, high = find_median_interval(len(ordered))
        return cls(float(np.median(ordered)), float(ordered[low]), float(ordered[high]))


def find_median_interval(count: int) -> tuple[int, int]:
    """Return which of ``count`` sorted samples bound the median with 95 % confidence, whatever their distribution.

    The number of samples below the median is binomial with p = 1/2; the interval is the shortest symmetric one that
    holds 95 % of it, or, of fewer than six samples, all that there are.

    >>> find_median_interval(5), find_median_interval(20)
    ((0, 4), (5, 14))
    """
    below, index = 0.0, 0
    while index < (count - 1) // 2:
        below += math.comb(count, index) / 2**count
        if below > _TAIL:
            break
        index += 1
    index = max(index - 1, 0)
    return index, count - 1 - index


@dataclass(frozen=True)
class LatencyResult:
    """Latency of the eager model and of a backend, measured in turn; of the compiled eager model if there is one."""

    eager: Percentiles
    backend: Percentiles
    compiled: Percentiles | None = None

    @property
    def speedup(self) -> float:
        """How many times faster the backend is, by the medians."""
        return self.eager.p50 / self.backend.p50


def measure_latency(
    run_eager: Callable[[], object],
    run_backend: Callable[[], object],
    *,
    run_compiled: Callable[[], object] | None = None,
    budget_s: float = DEFAULT_BUDGET_S,
    warmup: int = 1,
    min_runs: int = MIN_RUNS,
    first: tuple[float, float] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> LatencyResult:
    """Time all of them, one run of each in turn, so that whatever else the machine does falls on all.

    Args:
        run_eager: One run of the eager model.
        run_backend: One run of the backend, on the same inputs.
        run_compiled: One run of the compiled eager model; its first run, which compiles, is never counted.
        budget_s: Stop once this much time is spent, but not before ``min_runs``.
        warmup: Runs of each that are not counted.
        min_runs: Runs of each that are always counted.
        first: Seconds that one run of eager model and backend already took; counted as the first run.
        clock: Seconds from any origin.
    """
    functions = [run_eager, run_backend, *([run_compiled] if run_compiled else [])]
    if run_compiled:
        run_compiled()
    needed = min_runs - 1 if first and not run_compiled else min_runs
    samples = time_in_turn(functions, budget_s=budget_s, warmup=warmup, min_runs=needed, clock=clock)
    for taken, seconds in zip(samples, first or (), strict=False):
        taken.insert(0, seconds)
    return LatencyResult(*map(Percentiles.from_seconds, samples))


def time_in_turn(
    functions: Sequence[Callable[[], object]],
    *,
    bursts: Sequence[int] = (),
    budget_s: float = DEFAULT_BUDGET_S,
    warmup: int = 1,
    min_runs: int = MIN_RUNS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Return the seconds that each function took in each turn; a turn is a run of every one of them.

    Args:
        functions: What is timed.
        bursts: Runs of each in a turn, of which the mean counts, without the first, which finds the caches full of
            another's data; 1, or nothing: the only run counts.
        budget_s: Stop once this much time is spent, but not before ``min_runs``.
        warmup: Turns that are not counted.
        min_runs: Turns that are always counted.
        clock: Seconds from any origin.
    """
    samples: list[list[float]] = [[] for _ in functions]
    for _ in range(warmup):
        for run in functions:
            run()
    start, turns = clock(), 0
    while turns < min_runs or (clock() - start < budget_s and turns < MAX_RUNS):
        for run, taken, burst in zip(functions, samples, bursts or [1] * len(functions), strict=True):
            taken.append(_time_burst(run, burst, clock))
        turns += 1
    return samples


def _time_burst(run: Callable[[], object], burst: int, clock: Callable[[], float]) -> float:
    """Return the mean seconds of a run."""
    if burst > 1:
        run()
    counted = max(burst - 1, 1)
    start = clock()
    for _ in range(counted):
        run()
    return (clock() - start) / counted
