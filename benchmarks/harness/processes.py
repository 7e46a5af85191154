"""A function in a process of its own, and the peak resident memory of a process."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from flash_export.validators import footprint_process

if TYPE_CHECKING:
    from collections.abc import Callable

    Result = TypeVar("Result")

MIB = 1 << 20


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
