"""Where it is measured: time on the device, memory, the card and its clocks; and how much time is left."""

from __future__ import annotations

import itertools
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from flash_export.validators.latency import Percentiles

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu.sizes import Sizes

MIB = 1 << 20
MIN_RUNS = 3
QUERIES = {"driver": "driver_version", "clock_mhz": "clocks.sm", "power_limit_w": "power.limit"}


@dataclass(frozen=True)
class Timing:
    """How long a run takes.

    Attributes:
        runs: All but the first two, which warm up.
        first_ms: The first run.
        peak_mib: Most memory that PyTorch held meanwhile; None on a CPU.
    """

    runs: Percentiles
    first_ms: float
    peak_mib: float | None


class Device:
    """A CUDA device, or, to see whether everything runs, the CPU."""

    def __init__(self, kind: str) -> None:
        """Choose ``cuda`` or ``cpu``."""
        self.kind = kind
        self.is_cuda = kind == "cuda"

    def time(self, run: Callable[[], object], sizes: Sizes) -> Timing:
        """Time a function by events on the device: what the CPU does beside it does not count.

        Runs follow each other without waiting, as in a server that is busy, so that where the CPU is slower than the
        device, its time is what is measured.
        """
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        run()
        self.wait()
        first_s = time.perf_counter() - started
        run()
        self.wait()
        started, samples = time.perf_counter(), list[float]()
        while len(samples) < MIN_RUNS or (
            len(samples) < sizes.max_runs and time.perf_counter() - started < sizes.block_s
        ):
            samples += self._time_batch(run)
        peak_mib = torch.cuda.max_memory_allocated() / MIB if self.is_cuda else None
        return Timing(Percentiles.from_seconds(samples), first_s * 1e3, peak_mib)

    def wait(self) -> None:
        """Wait until the device has done all that it was told."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def _time_batch(self, run: Callable[[], object]) -> list[float]:
        if not self.is_cuda:
            started = time.perf_counter()
            run()
            return [time.perf_counter() - started]
        events = [torch.cuda.Event(enable_timing=True) for _ in range(MIN_RUNS + 1)]
        events[0].record()
        for event in events[1:]:
            run()
            event.record()
        torch.cuda.synchronize()
        return [before.elapsed_time(after) * 1e-3 for before, after in itertools.pairwise(events)]

    def describe(self) -> dict[str, Any]:
        """Return the card, its driver and the versions of what computes."""
        facts: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "device": "cpu"}
        if self.is_cuda:
            properties = torch.cuda.get_device_properties(0)
            facts |= {
                "device": properties.name,
                "compute_capability": f"{properties.major}.{properties.minor}",
                "memory_mib": properties.total_memory // MIB,
                "multiprocessors": properties.multi_processor_count,
                **{name: _query(field) for name, field in QUERIES.items()},
            }
        return facts

    def read_clock(self) -> int | None:
        """Return the clock of the multiprocessors in MHz, as far as the driver tells it."""
        text = _query(QUERIES["clock_mhz"]) if self.is_cuda else None
        return int(text) if text is not None and text.isdigit() else None


class Budget:
    """Minutes that a benchmark may take."""

    def __init__(self, minutes: float) -> None:
        """Start the clock."""
        self._end = time.monotonic() + minutes * 60

    @property
    def left_s(self) -> float:
        """Seconds that are left; 0 at the end."""
        return max(self._end - time.monotonic(), 0.0)


def _query(field: str) -> str | None:
    """Ask nvidia-smi for one figure of the first card; None where it does not tell."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
