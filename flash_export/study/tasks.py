"""What a study and a tuning are made of: tasks, each done by a process of its own, with what each depends on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from flash_export.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

# Of a study, and then of tuning.
Kind = Literal["train", "export", "export-long", "validate", "score", "time", "make", "judge"]


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        kind: What is done.
        model: To which model.
        backend: Where, if that matters.
        seq_len: At which length, if that matters.
        threads: With how many threads, if that matters.
    """

    kind: Kind
    model: str
    backend: str = ""
    seq_len: int = 0
    threads: int = 0

    @property
    def name(self) -> str:
        """A name that no other task has, and that a file can have."""
        threads = f"{self.threads}t" if self.threads else ""
        parts = (self.kind, self.model, self.backend.replace(":", "."), threads, str(self.seq_len or ""))
        return "~".join(filter(None, parts))

    @property
    def is_timed(self) -> bool:
        """Whether nothing else may run beside it."""
        return self.kind == "time"

    def describe(self) -> str:
        """Say what is done."""
        verbs = {"train": "training", "export": "exporting", "export-long": "exporting, to be timed at any length,"}
        words = [verbs.get(self.kind, self.kind.removesuffix("e") + "ing"), self.model]
        words += [f"on {self.backend}"] if self.backend else []
        words += [f"with {self.threads} threads"] if self.threads else []
        words += [f"at {self.seq_len} tokens"] if self.seq_len else []
        return " ".join(words)


@dataclass(frozen=True)
class Planned:
    """A task with what has to be done before it; ``key`` changes with whatever its result depends on."""

    task: Task
    needs: tuple[str, ...]
    key: str


class Planner:
    """Collects tasks, each after those that it needs."""

    def __init__(self) -> None:
        """Begin with none."""
        self.planned: dict[str, Planned] = {}

    def add(self, task: Task, needs: tuple[Task, ...], depends: Mapping[str, Any]) -> Task:
        """Add a task, and return it.

        Args:
            task: The task.
            needs: What has to be done before; its result depends on theirs.
            depends: What else it depends on, as plain JSON.
        """
        keys = [self.planned[one.name].key for one in needs]
        text = json.dumps([asdict(task), __version__, keys, depends], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        self.planned[task.name] = Planned(task, tuple(one.name for one in needs), key)
        return task
