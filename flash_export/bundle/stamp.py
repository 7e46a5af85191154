"""Whether a folder still holds what was read from it: another process may replace it at any moment.

Inode numbers would tell an exchange at once, but some network file systems make them up anew. A bundle's manifest holds
the hashes of all its files, so its own hash stands for them; size and time tell when one was written over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.errors import BundleError
from flash_export.files import hash_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@dataclass(frozen=True)
class Stamp:
    """What was found of a folder; None stands for a file that cannot be read.

    Attributes:
        manifest: Name of the file that stands for the content, and its sha256.
        files: Names of other files, each with its size in bytes and the time of its last change in ns.
    """

    manifest: tuple[str, str | None]
    files: tuple[tuple[str, tuple[int, int] | None], ...]


def take_stamp(folder: Path, manifest: str, files: Iterable[str] = ()) -> Stamp:
    """Look at a folder."""
    try:
        digest = hash_file(folder / manifest)
    except OSError:
        digest = None
    return Stamp((manifest, digest), tuple((name, _describe(folder / name)) for name in files))


def check_stamp(folder: Path, stamp: Stamp, cause: Exception | None = None) -> None:
    """Look at a folder again.

    Args:
        folder: The folder.
        stamp: What was found before.
        cause: What went wrong in between, if anything did.

    Raises:
        BundleError: Something else was found.
    """
    if take_stamp(folder, stamp.manifest[0], (name for name, _ in stamp.files)) != stamp:
        raise BundleError(f"{folder} was replaced while it was read; run it again") from cause


def _describe(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
