"""Writing files so that a killed run, or a full disk, leaves the old content or the new, never half."""

from __future__ import annotations

import ctypes
import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from flash_export.errors import BundleError, ConfigError
from flash_export.printable import format_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_HASH_BLOCK_BYTES = 1 << 20
_RANDOM_NAME = "?" * 8  # the part that tempfile draws


def check_utf8(path: Path) -> None:
    """Refuse a path that safetensors, onnxruntime and TensorRT cannot open.

    Raises:
        ConfigError: It has bytes that are no UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{format_path(path)} is no UTF-8, and the libraries that read models cannot open such a path; rename it"
        ) from error


def hash_file(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def hash_files(paths: Sequence[Path]) -> list[str]:
    """Return the sha256 of each file, computed at the same time: hashing releases Python's lock."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(hash_file, paths))


def flush_file(path: Path) -> None:
    """Make sure that a file or folder has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` to a temporary name beside ``path``, flush it and rename it.

    Raises:
        BundleError: The folder cannot be written, or the disk is full; ``path`` is then as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise BundleError(f"cannot write {path}: {error.strerror}; choose a folder that you may write to") from error
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise BundleError(f"cannot write {path}: {error.strerror}; free some space and run it again") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``target`` in one step, if the block succeeds.

    The folder lies beside ``target``, so that renaming it is atomic. When the block raises, it is removed and
    ``target`` stays as it was. What a killed process left there is removed by the next one.

    Raises:
        BundleError: ``target`` is the current folder, the folder beside it cannot be written, or the disk is full.
        ConfigError: Its path is no UTF-8.
    """
    check_utf8(target)
    target = target.resolve()  # a symbolic link keeps its place, and what it points to is replaced
    if target == Path.cwd():
        raise BundleError(f"{target} is the current folder, which cannot be replaced; give the name of a folder in it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale_staging(target)
        staging, lock = _create_staging(target)
    except OSError as error:
        raise BundleError(f"cannot write {target}: {error.strerror}; choose a folder that you may write to") from error
    try:
        yield staging
        staging.chmod(0o755)
        for path in staging.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors makes files that only their owner can read
            flush_file(path)
        flush_file(staging)
        if target.exists():
            _exchange(staging, target)
        else:
            staging.rename(target)
        flush_file(target.parent)
    except OSError as error:
        raise BundleError(f"cannot write {target}: {error.strerror}; free some space and run it again") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(lock)


def _create_staging(target: Path) -> tuple[Path, int]:
    """Create a folder beside ``target`` and hold a lock on it, which the system drops when this process dies.

    It gets the name that :func:`_remove_stale_staging` looks for once it is locked.

    Returns:
        The folder, and the file descriptor whose closing drops the lock.
    """
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    lock = os.open(folder, os.O_RDONLY)
    with suppress(OSError):  # a file system without locks; nobody can lock, so nobody removes
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return folder.rename(f"{folder}.tmp"), lock


def _remove_stale_staging(target: Path) -> None:
    """Remove staging folders of ``target`` that no living process holds a lock on."""
    for folder in target.parent.glob(f".{glob.escape(target.name)}.{_RANDOM_NAME}.tmp"):
        with suppress(OSError):  # locked, no folder, another user's, or on a file system without locks
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _exchange(left: Path, right: Path) -> None:
    """Swap two paths: atomically where the system can (Linux ``renameat2``), else by three renames."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        arguments = (_AT_FDCWD, os.fsencode(left), _AT_FDCWD, os.fsencode(right), _RENAME_EXCHANGE)
        if renameat2(*arguments) == 0:
            return
    aside = left.with_name(f"{left.name}.old")
    right.rename(aside)
    try:
        left.rename(right)
    except OSError:
        aside.rename(right)
        raise
    aside.rename(left)
