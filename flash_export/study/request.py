"""What the process of a task is asked for."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flash_export.errors import FlashExportError
from flash_export.study.config import StudyConfig  # noqa: TC001 (its fields are read as a schema)
from flash_export.study.tasks import Task, run_task

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Request:
    """What a process is asked for; paths are absolute.

    Attributes:
        config: The study.
        folder: Its folder.
        source: The folder that checkpoints are relative to.
        task: The task.
    """

    config: StudyConfig
    folder: str
    source: str
    task: Task

    def to_json(self) -> str:
        """Return it as one line."""
        return json.dumps(asdict(self))

    def run(self, progress: Callable[[float], None] = lambda _: None) -> dict[str, Any]:
        """Do the task; return ``{"value": ...}``, or ``{"error": ...}`` where the input does not allow it."""
        try:
            return {"value": run_task(self.config, Path(self.folder), Path(self.source), self.task, progress)}
        except FlashExportError as error:
            return {"error": str(error)}
