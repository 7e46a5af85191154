"""A function in a process of its own: its peak resident memory, and what a length costs there."""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from flash_export import Bundle, Generator
from flash_export.validators import footprint_process
from harness.sessions import THREADS, bind_run, make_token_feeds, make_tokens, open_session
from harness.timing import Activity, time_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Result = TypeVar("Result")

MIB = 1 << 20
WARM_UP_LEN = 4096
MAX_SECONDS_A_LENGTH = 120.0


def read_peak_mib() -> float:
    """Return the high-water mark of this process's resident memory."""
    if (peak := footprint_process.read_peak_bytes()) is None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak / MIB


def restart_peak() -> float:
    """Start the high-water mark anew and return it: what is resident now, or without Linux the peak so far."""
    footprint_process.reset_peak()
    return read_peak_mib()


def run_in_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function of an importable module in a fresh process and return what it returned."""
    current = os.getcwd()
    os.chdir(os.sep)  # a spawned process imports from the current folder until it has the path of this one
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(function, arguments)
    finally:
        os.chdir(current)


@dataclass(frozen=True)
class LengthCost:
    """What one length costs."""

    seq_len: int
    time_us: float  # per token, the median of the runs
    runs: int
    peak_mib: float  # highest resident memory while running, less what the open session held before
    others_share: float  # of the processors, what other processes took meanwhile

    @property
    def token_kib(self) -> float:
        """KiB of peak memory per token."""
        return self.peak_mib * 1024 / self.seq_len


def measure_length(path: Path, seq_len: int, vocab_size: int, repeats: int, mem_pattern: bool) -> LengthCost:
    """Time one length in this process and read its peak memory, output included."""
    session = open_session(path, enable_mem_pattern=mem_pattern)
    feeds = make_token_feeds(session, make_tokens(seq_len, vocab_size))
    return _measure(lambda: bind_run(session, feeds), seq_len, repeats)


def measure_segments(path: Path, seq_len: int, vocab_size: int, repeats: int) -> LengthCost:
    """Time one text that is read in segments."""
    tokens = make_tokens(seq_len, vocab_size)[0]
    with Generator.open(Bundle.open(path.parent), threads=THREADS) as generator:

        def warm_up() -> Callable[[], object]:
            generator.prefill([tokens[:WARM_UP_LEN]])
            return lambda: generator.prefill([tokens])

        return _measure(warm_up, seq_len, repeats)


def _measure(prepare: Callable[[], Callable[[], object]], seq_len: int, repeats: int) -> LengthCost:
    """Time the function that ``prepare`` returns, and read how far both drive the memory of this process."""
    before_mib = restart_peak()
    run = prepare()
    activity = Activity.read()
    started, times_ms = time.perf_counter(), list[float]()
    while len(times_ms) < repeats and (len(times_ms) < 2 or time.perf_counter() - started < MAX_SECONDS_A_LENGTH):
        times_ms.append(time_run(run))
    others_share = activity.compute_others_share()
    time_us, peak_mib = statistics.median(times_ms) * 1e3 / seq_len, read_peak_mib() - before_mib
    return LengthCost(seq_len, time_us, len(times_ms), peak_mib, others_share)
