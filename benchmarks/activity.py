"""How much of the machine other processes take while something is timed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

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

    def compute_others_share(self, until: Activity) -> float:
        """Return which share of the processors others took up to a later reading."""
        others_s = (until.busy_s - self.busy_s) - (until.own_s - self.own_s)
        capacity_s = (until.wall_s - self.wall_s) * (os.cpu_count() or 1)
        return max(0.0, others_s / capacity_s)
