"""Running many inputs in processes of their own, so that a hang or a crash is a finding like any other."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from queue import Empty, Queue
from typing import TYPE_CHECKING

from tests.fuzz.sandbox import Finding, run_input

if TYPE_CHECKING:
    from collections.abc import Iterable
    from multiprocessing.connection import Connection

# An input has this much time on a processor, and this much in all on a busy machine.
MAX_CPU_SECONDS, MAX_SECONDS = 20.0, 100.0
_START_SECONDS = 120.0  # for importing PyTorch on a busy machine
_MAX_BYTES = 24 << 30  # of address space, most of which libraries reserve and never use
_READY = "ready"


@dataclass
class FuzzRun:
    """Inputs to run, shared by the threads that each watch one process."""

    seed: int
    material: Path
    folder: Path
    inputs: Queue[int] = field(default_factory=Queue)
    findings: list[Finding] = field(default_factory=list)


def fuzz(seed: int, indices: Iterable[int], material: Path, folder: Path, *, processes: int) -> list[Finding]:
    """Run the inputs of a seed and return what is wrong with the answers, in the order of the inputs.

    Args:
        seed: Decides what the inputs are.
        indices: Which of them are run.
        material: Good files, see :func:`tests.fuzz.material.make_material`.
        folder: Empty folder to work in.
        processes: How many are run at the same time.
    """
    run = FuzzRun(seed, material, folder)
    for index in indices:
        run.inputs.put(index)
    with ThreadPoolExecutor(processes) as pool:
        for watcher in [pool.submit(_watch, run, number) for number in range(processes)]:
            watcher.result()
    return sorted(run.findings, key=lambda finding: finding.index)


def _watch(run: FuzzRun, number: int) -> None:
    """Give inputs to a process until there are none; one that hangs or dies is replaced."""
    context = multiprocessing.get_context("spawn")
    for life in count():
        connection, other = context.Pipe()
        folder = run.folder / f"{number}-{life}"
        process = context.Process(target=_work, args=(run.seed, run.material, folder, other), daemon=True)
        process.start()
        other.close()
        try:
            if _feed(run, connection, process.pid or 0):
                return
        finally:
            process.kill()
            process.join()
            connection.close()


def _feed(run: FuzzRun, connection: Connection, pid: int) -> bool:
    """Return whether all inputs are done; if not, the process is of no more use."""
    if not connection.poll(_START_SECONDS) or connection.recv() != _READY:
        raise RuntimeError("the process of the fuzzer did not start")
    while True:
        try:
            index = run.inputs.get_nowait()
        except Empty:
            return True
        connection.send(index)
        try:
            if not _wait(connection, pid):
                run.findings.append(Finding(index, "repeat it to see", f"no answer within {MAX_CPU_SECONDS:g} s"))
                return False
            finding = connection.recv()
        except (EOFError, ConnectionError):
            run.findings.append(Finding(index, "repeat it to see", "the process died"))
            return False
        if finding is not None:
            run.findings.append(finding)


def _wait(connection: Connection, pid: int) -> bool:
    """Return whether an answer came in time."""
    start, used = time.monotonic(), _read_cpu_seconds(pid)
    while not connection.poll(0.5):
        if time.monotonic() - start > MAX_SECONDS or _read_cpu_seconds(pid) - used > MAX_CPU_SECONDS:
            return False
    return True


def _read_cpu_seconds(pid: int) -> float:
    """Return the time that a process and its threads had; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _work(seed: int, material: Path, folder: Path, connection: Connection) -> None:
    """Answer the inputs that come, each with a finding or None."""
    os.environ["OMP_NUM_THREADS"] = "1"
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
    import torch

    torch.set_num_threads(1)
    folder.mkdir()
    connection.send(_READY)
    while True:
        try:
            index = connection.recv()
        except EOFError:
            return
        connection.send(run_input(seed, index, material, folder / str(index)))
