"""What the process of a task is asked for."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flash_export.errors import FlashExportError
from flash_export.study.comparing import run_study
from flash_export.study.config import StudyConfig
from flash_export.study.tasks import Task  # noqa: TC001
from flash_export.study.tuning import TuneConfig, run_tuning

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Request:
    """What a process is asked for; paths are absolute.

    Attributes:
        config: What it is part of.
        folder: Where that is done.
        source: The folder that checkpoints are relative to.
        task: The task.
    """

    config: StudyConfig | TuneConfig
    folder: str
    source: str
    task: Task

    def to_json(self) -> str:
        """Return it as one line."""
        return json.dumps(asdict(self))

    def run(self, progress: Callable[[float], None] = lambda _: None) -> dict[str, Any]:
        """Do the task; return ``{"value": ...}``, or ``{"error": ...}`` where the input does not allow it."""
        folder, source = Path(self.folder), Path(self.source)
        try:
            if isinstance(self.config, StudyConfig):
                return {"value": run_study(self.config, folder, source, self.task, progress)}
            return {"value": run_tuning(self.config, folder, self.task, progress)}
        except FlashExportError as error:
            return {"error": str(error)}
