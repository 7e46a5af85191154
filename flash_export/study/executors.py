"""Where the tasks of a study run: processes on this machine, or a Ray cluster.

A task that times takes a whole machine: it runs alone, and what is measured is not what something else left over.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from flash_export.errors import BackendUnavailableError, ConfigError
from flash_export.isolation import NEUTRAL_FOLDER, build_command
from flash_export.runtime.backends import get_backend
from flash_export.study.worker import MODULE

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.study.request import Request

# A process that was killed, by the system for memory or by a node that went away, is tried again so often.
MAX_TRIES = 3
_WAIT_S = 0.5
_REASON_CHARACTERS = 300


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        name: The task.
        value: What it found; None: it failed.
        reason: Why it failed.
        share: What is done of one that goes on; None of one that ended.
    """

    name: str
    value: Any = None
    reason: str | None = None
    share: float | None = None


class Executor(Protocol):
    """Runs tasks."""

    def has_room(self, *, is_timed: bool) -> bool:
        """Tell whether a task can be given now."""

    def submit(self, request: Request) -> None:
        """Begin a task."""

    def wait(self) -> list[Outcome]:
        """Return what happened since; nothing after half a second."""

    def close(self) -> None:
        """End whatever runs."""


class LocalExecutor:
    """Processes on this machine, some side by side; those that time alone."""

    def __init__(self, jobs: int, logs: Path) -> None:
        """Run so many at a time; what they print is kept in a folder.

        Raises:
            ConfigError: There is no such number of jobs.
        """
        if jobs < 1:
            raise ConfigError(f"jobs={jobs} is not usable; use 1 or more")
        self.jobs, self.logs = jobs, logs
        self._events: queue.Queue[Outcome] = queue.Queue()
        self._running: dict[str, Request] = {}
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._is_closed = False
        logs.mkdir(parents=True, exist_ok=True)

    def has_room(self, *, is_timed: bool) -> bool:
        """Tell whether a task can be given now."""
        if is_timed:
            return not self._running
        return len(self._running) < self.jobs and not any(one.task.is_timed for one in self._running.values())

    def submit(self, request: Request) -> None:
        """Begin a task in a process of its own."""
        self._running[request.task.name] = request
        threading.Thread(target=self._run, args=(request,), daemon=True).start()

    def wait(self) -> list[Outcome]:
        """Return what happened since; nothing after half a second."""
        outcomes: list[Outcome] = []
        try:
            outcomes.append(self._events.get(timeout=_WAIT_S))
            while True:
                outcomes.append(self._events.get_nowait())
        except queue.Empty:
            pass
        for outcome in outcomes:
            if outcome.share is None:
                self._running.pop(outcome.name, None)
        return outcomes

    def close(self) -> None:
        """Kill whatever runs."""
        self._is_closed = True
        for process in tuple(self._processes.values()):
            process.kill()

    def _run(self, request: Request) -> None:
        name = request.task.name
        for tries in range(1, MAX_TRIES + 1):
            found, code = self._run_once(request)
            if found is not None:
                self._events.put(Outcome(name, found.get("value"), found.get("error")))
                return
            if code >= 0 or tries == MAX_TRIES or self._is_closed:
                self._events.put(Outcome(name, None, self._explain(name, code)))
                return

    def _run_once(self, request: Request) -> tuple[dict[str, Any] | None, int]:
        """Return what a process found, if it came so far, and its exit code, negative where it was killed."""
        name = request.task.name
        with (self.logs / f"{name}.log").open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                build_command(MODULE, (request.folder, request.source)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=NEUTRAL_FOLDER,
            )
        self._processes[name] = process
        found = None
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(request.to_json() + "\n")
            process.stdin.close()
            for line in process.stdout:
                values = json.loads(line)
                if "progress" in values:
                    self._events.put(Outcome(name, share=values["progress"]))
                else:
                    found = values
        del self._processes[name]
        return found, process.returncode

    def _explain(self, name: str, code: int) -> str:
        if code < 0:
            return f"its process was killed by {signal.Signals(-code).name}, {MAX_TRIES} times"
        lines = (self.logs / f"{name}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        detail = lines[-1] if lines else "no message"
        return f"its process ended with exit code {code} ({detail[:_REASON_CHARACTERS]}); see logs/{name}.log"


class RayExecutor:
    """A Ray cluster. The study's folder has to be on a file system that all its nodes see.

    A task takes one CPU; one that times takes as many as the largest node has, and so a node for itself. What needs a
    GPU takes one. A worker that is lost is replaced, and its task tried again.
    """

    def __init__(self, address: str) -> None:
        """Join the cluster; ``local`` starts one on this machine.

        Raises:
            BackendUnavailableError: Ray is not installed, or no cluster answers.
        """
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a task without a GPU keeps what it sees
        try:
            import ray
        except ImportError as error:
            raise BackendUnavailableError(
                "a cluster needs Ray, which is not installed; run pip install 'flash-export[cluster]'"
            ) from error
        self._ray = ray
        try:
            ray.init(None if address == "local" else address, log_to_driver=False, ignore_reinit_error=True)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise BackendUnavailableError(
                f"no Ray cluster answers at {address} ({str(error).splitlines()[0]}); start one with 'ray start', or "
                "give --ray local"
            ) from error
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._largest = max(node.get("CPU", 0.0) for node in nodes)
        self._total = sum(node.get("CPU", 0.0) for node in nodes)
        self._pending: dict[Any, str] = {}
        self._remote = ray.remote(_run_remotely)

    def has_room(self, *, is_timed: bool) -> bool:
        """Tell whether a task can be given now; Ray itself waits for room, so that a few more can."""
        return len(self._pending) < 2 * self._total

    def submit(self, request: Request) -> None:
        """Begin a task somewhere."""
        task = request.task
        options: dict[str, Any] = {
            "num_cpus": self._largest if task.is_timed else 1,
            "num_gpus": 1 if task.backend and get_backend(task.backend).device == "cuda" else 0,
            "max_retries": MAX_TRIES - 1,
            "name": task.describe(),
        }
        reference = self._remote.options(**options).remote(request)
        self._pending[reference] = task.name

    def wait(self) -> list[Outcome]:
        """Return what ended since; nothing after half a second."""
        if not self._pending:
            return []
        ended, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=_WAIT_S)
        return [self._read(reference) for reference in ended]

    def close(self) -> None:
        """Leave the cluster, and what runs to it."""
        for reference in self._pending:
            self._ray.cancel(reference, force=True)
        self._ray.shutdown()

    def _read(self, reference: Any) -> Outcome:
        name = self._pending.pop(reference)
        try:
            found = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return Outcome(
                name, None, f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"[:_REASON_CHARACTERS]
            )
        return Outcome(name, found.get("value"), found.get("error"))


def _run_remotely(request: Request) -> dict[str, Any]:
    return request.run()
