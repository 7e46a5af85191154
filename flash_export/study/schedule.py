"""Doing the tasks of a study: what was found is kept task by task, so that an interrupted study goes on."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flash_export.bundle.output_folder import check_folder
from flash_export.errors import BundleError, describe_reason
from flash_export.files import write_file
from flash_export.reading import MAX_JSON_BYTES, parse_json, read_bytes
from flash_export.strict_json import format_json
from flash_export.study.request import Request

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from flash_export.progress import ProgressCallback
    from flash_export.study.config import StudyConfig
    from flash_export.study.executors import Executor, Outcome
    from flash_export.study.tasks import Planned
    from flash_export.study.tuning import TuneConfig

logger = logging.getLogger(__name__)
RESULTS = "results"


@dataclass(frozen=True)
class Found:
    """What a task came to.

    Attributes:
        value: What it found; None: nothing.
        reason: Why there is nothing.
    """

    value: dict[str, Any] | None = None
    reason: str | None = None


class ResultFolder:
    """A file for each task that was done, which names what its result depended on."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, which is made."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, planned: Planned) -> dict[str, Any] | None:
        """Return what a task found; None if it was not done, or something that it depends on is another now."""
        path = self.folder / f"{planned.task.name}.json"
        if not path.exists():
            return None
        try:
            text = read_bytes(path, BundleError, "remove it", max_bytes=MAX_JSON_BYTES).decode("utf-8")
            values = parse_json(text)
            return values["value"] if values["key"] == planned.key else None
        except (BundleError, ValueError, KeyError, TypeError):
            logger.warning("%s is damaged; the task is done again", path)
            return None

    def write(self, planned: Planned, value: dict[str, Any], seconds: float) -> None:
        """Keep what a task found."""
        text = format_json({"key": planned.key, "seconds": round(seconds, 1), "value": value})
        write_file(self.folder / f"{planned.task.name}.json", text.encode("utf-8"))


class Schedule:
    """Tasks in the order in which they can be done, those that are ready first to last."""

    def __init__(self, planned: Sequence[Planned], results: ResultFolder) -> None:
        """Begin with what is there already."""
        self.planned = {one.task.name: one for one in planned}
        self.results = results
        self.found: dict[str, Found] = {}
        self.started: dict[str, float] = {}
        self.shares: dict[str, float] = {}
        for one in planned:
            value = results.read(one)
            if value is not None and all(self._is_good(need) for need in one.needs):
                self.found[one.task.name] = Found(value)

    def take_ready(self, executor: Executor) -> Planned | None:
        """Return a task whose time has come; those that time last, because nothing runs beside them."""
        waiting = [one for name, one in self.planned.items() if name not in self.found and name not in self.started]
        for one in sorted(waiting, key=lambda one: one.task.is_timed):
            if all(need in self.found for need in one.needs) and executor.has_room(is_timed=one.task.is_timed):
                if reason := self._find_obstacle(one):
                    self.found[one.task.name] = Found(reason=reason)
                else:
                    self.started[one.task.name] = time.monotonic()
                    return one
        return None

    def note(self, outcome: Outcome) -> None:
        """Take what an executor says."""
        if outcome.share is not None:
            self.shares[outcome.name] = outcome.share
            return
        started = self.started.pop(outcome.name)
        self.shares.pop(outcome.name, None)
        if outcome.value is not None:
            self.results.write(self.planned[outcome.name], outcome.value, time.monotonic() - started)
        self.found[outcome.name] = Found(outcome.value, outcome.reason)
        if outcome.reason is not None:
            logger.warning("%s: %s", self.planned[outcome.name].task.describe(), outcome.reason)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left."""
        return len(self.found) == len(self.planned)

    def describe(self) -> str:
        """Say what is going on."""
        names = [self.planned[name].task.describe() for name in self.started]
        shares = [f" {self.shares[name]:.0%}" if name in self.shares else "" for name in self.started]
        return "; ".join(name + share for name, share in zip(names, shares, strict=True)) or "waiting"

    def _is_good(self, name: str) -> bool:
        """Whether a task found something that others can go on with."""
        found = self.found.get(name)
        return found is not None and found.value is not None and found.value.get("is_right", True)

    def _find_obstacle(self, planned: Planned) -> str | None:
        """Return why a task cannot be done; None if it can."""
        for need in planned.needs:
            if not self._is_good(need):
                found, what = self.found[need], self.planned[need].task
                if found.value is not None:
                    return f"it failed validation on {what.backend}"
                return found.reason if what.kind != planned.task.kind else f"{what.describe()}: {found.reason}"
        return None


def prepare_folder(folder: Path, config: StudyConfig | TuneConfig) -> None:
    """Make the folder of a study or a tuning, with its config in it; one that is there is gone on with.

    Raises:
        BundleError: It is a file or a bundle, or holds something else, or cannot be made.
    """
    marker = folder / f"{config.kind}.json"
    check_folder(folder)
    if folder.is_dir() and not marker.is_file() and any(folder.iterdir()):
        raise BundleError(f"{folder} holds other files and nothing of a {config.kind}; choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(f"{folder} cannot be made ({describe_reason(error)}); give another folder") from error
    write_file(marker, format_json(config).encode("utf-8"))


def run_tasks(
    config: StudyConfig | TuneConfig,
    planned: Sequence[Planned],
    folder: Path,
    source: Path,
    executor: Executor,
    progress: ProgressCallback | None = None,
) -> dict[str, Found]:
    """Do what is left of a study, or of tuning.

    Args:
        config: What is to be done.
        planned: Its tasks.
        folder: Its folder.
        source: The folder that checkpoints are relative to.
        executor: Where tasks run; it is closed.
        progress: Called now and then.

    Returns:
        What each task found, by its name.
    """
    schedule = Schedule(planned, ResultFolder(folder / RESULTS))
    shown: tuple[int, int, str] | None = None
    try:
        while not schedule.is_done:
            while (ready := schedule.take_ready(executor)) is not None:
                executor.submit(Request(config, str(folder.resolve()), str(source.resolve()), ready.task))
            state = len(schedule.found), len(schedule.planned), schedule.describe()
            if progress is not None and state != shown:
                progress(*state)
                shown = state
            for outcome in executor.wait() if schedule.started else ():
                schedule.note(outcome)
    finally:
        executor.close()
    return schedule.found
