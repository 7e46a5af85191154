"""Writing files so that a killed run, or a full disk, leaves the old content or the new, never half."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from flash_export.errors import BundleError, ConfigError
from flash_export.locks import lock_folder
from flash_export.printable import format_path
from flash_export.temporary import create_temporary_folder, open_temporary_file

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_HASH_BLOCK_BYTES = 1 << 20
# What everyone may do with what is new; what takes the place of something keeps the permissions of that.
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755


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


def hash_folder(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file of a folder, by name."""
    paths = sorted(folder.iterdir())
    return {path.name: digest for path, digest in zip(paths, hash_files(paths), strict=True)}


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
    with replace_file(path) as stream:
        stream.write(data)


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write to, which takes the place of ``path`` in one step if the block succeeds.

    Raises:
        BundleError: The folder cannot be written, or the disk is full; ``path`` is then as it was.
    """
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary, stream = stack.enter_context(open_temporary_file(path.parent))
        except OSError as error:
            raise BundleError(
                f"cannot write {path}: {error.strerror}; choose a folder that you may write to"
            ) from error
        try:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            temporary.chmod(_get_mode(path, stat.S_ISREG, _FILE_MODE))
            temporary.replace(path)
        except OSError as error:
            raise BundleError(f"cannot write {path}: {error.strerror}; free some space and run it again") from error


@contextmanager
def replace_folder(target: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``target`` in one step, if the block succeeds.

    The folder lies beside ``target``, so that renaming it is atomic. When the block raises, it is removed and
    ``target`` stays as it was. What a killed process left there is removed by the next one.

    Args:
        target: Folder to make or to replace.
        overwrite: Whether what another process has put there in the meantime is replaced too; an empty folder always
            is.

    Raises:
        BundleError: ``target`` is the current folder, the folder beside it cannot be written, the disk is full, or
            another process was first.
        ConfigError: Its path is no UTF-8.
    """
    check_utf8(target)
    target = target.resolve()  # a symbolic link keeps its place, and what it points to is replaced
    if target == Path.cwd():
        raise BundleError(f"{target} is the current folder, which cannot be replaced; give the name of a folder in it")
    with ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            staging = stack.enter_context(create_temporary_folder(target.parent))
        except OSError as error:
            raise BundleError(
                f"cannot write {target}: {error.strerror}; choose a folder that you may write to"
            ) from error
        try:
            yield staging
            _finish_folder(staging)
            staging.chmod(_get_mode(target, stat.S_ISDIR, _FOLDER_MODE))
            _put_folder(staging, target, overwrite=overwrite)
            flush_file(target.parent)
        except OSError as error:
            raise BundleError(f"cannot write {target}: {error.strerror}; free some space and run it again") from error


def link_folder(source: Path, target: Path, skipped: Collection[str]) -> None:
    """Make hard links to all files of a folder in another one, which has none of them.

    Args:
        source: Folder; one that is not there is an empty one.
        target: Folder that exists.
        skipped: Names in ``source`` that are left out.
    """
    for path in source.iterdir() if source.is_dir() else ():
        if path.name in skipped:
            continue
        if path.is_dir() and not path.is_symlink():
            (target / path.name).mkdir()
            link_folder(path, target / path.name, ())
        else:
            os.link(path, target / path.name, follow_symlinks=False)


def _get_mode(path: Path, is_kind: Callable[[int], bool], default: int) -> int:
    """Return the permissions of what will be replaced, or the default where nothing of its kind is."""
    with suppress(OSError):
        mode = path.lstat().st_mode
        if is_kind(mode):
            return stat.S_IMODE(mode)
    return default


def _finish_folder(folder: Path) -> None:
    """Flush what was written into a folder, and let all read the new files.

    A file with several links was there before: it is on the disk, and its permissions are not ours to change.
    """
    for path in folder.rglob("*"):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            path.chmod(_FILE_MODE)  # safetensors makes files that only their owner can read
            flush_file(path)
        elif stat.S_ISDIR(found.st_mode):
            flush_file(path)
    flush_file(folder)


def _put_folder(staging: Path, target: Path, *, overwrite: bool) -> None:
    """Give a folder the name of another one, which then has the name of the first.

    Renaming alone is atomic and does not replace a folder with something in it, so that of several processes that make
    one new folder only the first succeeds.
    """
    while True:
        try:
            staging.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
        if not overwrite:
            raise BundleError(
                f"{target} was made by another process in the meantime; choose another folder, or replace it with "
                "--force"
            )
        with suppress(FileNotFoundError), lock_folder(target):  # it may be gone by now
            _exchange(staging, target)
            return


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
