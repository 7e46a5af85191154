"""The tasks, by the name that an interface carries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.errors import ConfigError
from flash_export.tasks.keypoints import KeypointsTask
from flash_export.tasks.signal import SignalTask
from flash_export.tasks.tokens import TokensTask

if TYPE_CHECKING:
    from flash_export.tasks.base import Task

TASKS: dict[str, Task] = {task.name: task for task in (TokensTask(), SignalTask(), KeypointsTask())}


def get_task(name: str) -> Task:
    """Return the task of a name.

    Raises:
        ConfigError: There is none.
    """
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}; this version knows {', '.join(TASKS)}")
    return TASKS[name]
