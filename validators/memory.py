"""Whether a cell fits: a coarse estimate of the eager model's memory, and what is free on this machine.

A process that is killed for memory tells nothing, so a cell that would not fit is reported as skipped instead.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flash_export.models.base import ModelConfig
    from flash_export.validators.lengths import Cell

_GIB = 1 << 30
_CGROUP = Path("/sys/fs/cgroup")


def read_free_bytes() -> int:
    """Return the memory that this process may still take: the smaller of the machine's and its control group's."""
    candidates = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        candidates = [int(fields["MemAvailable"].split()[0]) * 1024]
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            candidates.append(int(limit) - int((_CGROUP / "memory.current").read_text()))
    except (OSError, KeyError, ValueError):
        pass  # not Linux, or no control group: the first candidate stands
    return max(0, min(candidates))


def describe_lack_of_memory(config: ModelConfig, cell: Cell) -> str | None:
    """Say why a cell would not fit in half of the free memory, or None when it does.

    The other half is left to the backends and to whatever else the machine does.
    """
    needed, free = config.estimate_bytes(cell.batch, cell.seq_len), read_free_bytes()
    if needed <= free // 2:
        return None
    return (
        f"not enough memory: the reference needs about {needed / _GIB:.1f} GiB for {cell.batch} x {cell.seq_len}, "
        f"half of the free memory is {free / _GIB / 2:.1f} GiB"
    )
