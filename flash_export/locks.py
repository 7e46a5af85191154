"""Advisory locks on folders, which the system drops when their process dies.

The lock is on the folder itself, not on a file in it: it needs no right to write, and nothing is left behind. A folder
that is exchanged for another while someone waits takes its lock along, so whoever gets a lock looks whether the folder
is still in its place. File systems without locks behave as if nobody else were there.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flash_export.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK_TIMEOUT_S = 600.0
_POLL_S = 0.02
_PATIENCE_S = 0.5  # a wait that is shorter than this is not worth a word

logger = logging.getLogger(__name__)


@contextmanager
def lock_folder(folder: Path, *, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the lock of a folder while the block runs; a wait for another process is logged in one line.

    Args:
        folder: A folder that exists; what is locked is what this path leads to when the wait is over.
        timeout_s: Longest wait, in seconds.

    Raises:
        BundleError: Another process held the lock all the time.
        OSError: The folder is not there, or went away during the wait.
    """
    start, is_told = time.monotonic(), False
    while (descriptor := _try_lock(folder)) is None:
        waited_s = time.monotonic() - start
        if waited_s > timeout_s:
            raise BundleError(
                f"{folder} has been changed by another process for more than {timeout_s:g} s; run it again when that "
                "has ended, or end it"
            )
        if waited_s > _PATIENCE_S and not is_told:
            logger.warning("Waiting for another process that changes %s", folder)
            is_told = True
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        os.close(descriptor)


def is_in_place(path: Path, descriptor: int) -> bool:
    """Tell whether a path still leads to what was opened."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except OSError:
        return False


def _try_lock(folder: Path) -> int | None:
    """Return the descriptor that holds the lock; None if another one has it, or the folder was exchanged."""
    folder = folder.resolve()
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # a file system without locks
        return descriptor
    if is_in_place(folder, descriptor):
        return descriptor
    os.close(descriptor)
    return None
