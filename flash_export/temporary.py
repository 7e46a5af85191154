"""Temporary files and folders: locked while their process lives, and removed by the next one if it was killed.

All have one kind of name, so that they can be told from what is not ours, wherever they lie: beside what they will
replace, or in the system's folder for temporary files.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from flash_export.locks import is_in_place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PREFIX, _SUFFIX = ".flash-export-", ".tmp"
_NAME = re.compile(rf"{re.escape(_PREFIX)}[a-z0-9_]{{8}}{re.escape(_SUFFIX)}")  # between them what tempfile draws


@contextmanager
def open_temporary_file(folder: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Yield a new file that is removed afterwards, unless the block renamed it; left-overs beside it are removed.

    Raises:
        OSError: The file cannot be made.
    """
    remove_leftovers(folder)
    path, descriptor = _create(lambda: tempfile.mkstemp(_SUFFIX, _PREFIX, folder))
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield path, stream
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def create_temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Yield a new folder that is removed afterwards, unless the block renamed it; left-overs beside it are removed.

    Args:
        parent: Where it is made; None: in the system's folder for temporary files.

    Raises:
        OSError: The folder cannot be made.
    """
    remove_leftovers(parent)

    def make() -> tuple[int, str]:
        name = tempfile.mkdtemp(_SUFFIX, _PREFIX, parent)
        try:
            return os.open(name, os.O_RDONLY | os.O_DIRECTORY), name
        except FileNotFoundError:  # taken for a left-over before it could be locked
            return make()

    path, descriptor = _create(make)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def remove_leftovers(*folders: Path | None) -> None:
    """Remove the temporary files and folders in these folders whose processes have died.

    What a living process holds, what is another user's, and what is not named as ours stays, and so does everything on
    a file system without locks.

    Args:
        folders: Folders that may be missing; None is the system's for temporary files.
    """
    for folder in folders:
        with suppress(OSError):
            for entry in list(os.scandir(folder or tempfile.gettempdir())):
                if _NAME.fullmatch(entry.name):
                    with suppress(OSError):
                        _remove_abandoned(Path(entry.path))


def _create(make: Callable[[], tuple[int, str]]) -> tuple[Path, int]:
    """Make a file or folder and lock it; again, should it have been taken for a left-over in between.

    Returns:
        Its path, and the descriptor whose closing drops the lock.
    """
    while True:
        descriptor, name = make()
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if is_in_place(Path(name), descriptor):
            return Path(name), descriptor
        os.close(descriptor)


def _remove_abandoned(path: Path) -> None:
    """Remove a file or folder of this user that nobody has locked.

    Raises:
        OSError: It is locked, a link, or cannot be locked or removed.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_in_place(path, descriptor):
            return
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(path, ignore_errors=True)
        elif stat.S_ISREG(found.st_mode):
            path.unlink()
    finally:
        os.close(descriptor)
