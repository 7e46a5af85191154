"""Peak resident memory of a process, and of a function run in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Result = TypeVar("Result")

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_NEUTRAL_FOLDER = os.sep


def read_peak_bytes() -> int:
    """Return the high-water mark of this process's resident memory."""
    for line in _STATUS.read_text().splitlines() if _STATUS.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak() -> None:
    """Start the high-water mark anew from what is resident now; without Linux it stays where it was."""
    if _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text(_RESET_PEAK)


def run_in_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function of an importable module in a fresh process and return what it returned."""
    with _start_in(_NEUTRAL_FOLDER), multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


@contextmanager
def _start_in(folder: str) -> Iterator[None]:
    """Make a folder the current one meanwhile: a spawned process imports from there until it has this one's path."""
    current = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(current)
