"""Timing two runners against each other on the same inputs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_BUDGET_S = 0.5
MIN_RUNS = 3
MAX_RUNS = 1000


@dataclass(frozen=True)
class Percentiles:
    """Percentiles of a latency, in milliseconds."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def from_seconds(cls, samples: list[float]) -> Percentiles:
        """Summarise samples given in seconds."""
        p50, p90, p99 = np.percentile(np.asarray(samples) * 1000, (50, 90, 99)).tolist()
        return cls(p50, p90, p99)


@dataclass(frozen=True)
class LatencyResult:
    """Latency of the eager model and of a backend, measured in turn."""

    eager: Percentiles
    backend: Percentiles
    runs: int

    @property
    def speedup(self) -> float:
        """How many times faster the backend is, by the medians."""
        return self.eager.p50 / self.backend.p50


def measure_latency(
    run_eager: Callable[[], object],
    run_backend: Callable[[], object],
    *,
    budget_s: float = DEFAULT_BUDGET_S,
    warmup: int = 1,
    min_runs: int = MIN_RUNS,
    first: tuple[float, float] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> LatencyResult:
    """Time both, one run of each in turn, so that whatever else the machine does falls on both.

    Args:
        run_eager: One run of the eager model.
        run_backend: One run of the backend, on the same inputs.
        budget_s: Stop once this much time is spent, but not before ``min_runs``.
        warmup: Runs of each that are not counted.
        min_runs: Runs of each that are always counted.
        first: Seconds that one run of each already took; counted as the first run.
        clock: Seconds from any origin.
    """
    for _ in range(warmup):
        run_eager()
        run_backend()
    eager, backend = ([first[0]], [first[1]]) if first else ([], [])
    start = clock()
    while len(eager) < min_runs or (clock() - start < budget_s and len(eager) < MAX_RUNS):
        eager.append(_time_run(run_eager, clock))
        backend.append(_time_run(run_backend, clock))
    return LatencyResult(Percentiles.from_seconds(eager), Percentiles.from_seconds(backend), len(eager))


def _time_run(run: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return clock() - start
