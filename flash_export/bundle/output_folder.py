"""Where a command may write a folder: where nothing is lost, neither now nor when what lies around it is replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.bundle.bundle import GRAPH_FILE, MANIFEST_FILE
from flash_export.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def check_folder(target: Path) -> None:
    """Refuse a folder to write into that is a file, a bundle, or in either.

    Raises:
        BundleError: It is.
    """
    _check_place((target.absolute(), *target.absolute().parents))


def check_replaceable(target: Path, marker: str, kind: str, lost: str, *, force: bool) -> None:
    """Refuse to write a folder where something else is.

    Args:
        target: The folder.
        marker: The file that a folder of this kind has.
        kind: What is to be written.
        lost: What else of such a folder would be lost.
        force: Replace one of this kind.

    Raises:
        BundleError: ``target`` is a file, in a bundle, another folder, or one of this kind and ``force`` is not set.
    """
    _check_place(target.absolute().parents)
    if not target.exists():
        return
    if not target.is_dir():
        raise BundleError(f"{target} is a file; give the name of a folder to create")
    is_one = (target / marker).is_file()
    if not is_one and any(target.iterdir()):
        raise BundleError(f"{target} holds other files and is no {kind}; choose another folder")
    if is_one and not force:
        raise BundleError(f"{target} already holds a {kind}; add --force to replace it, with {lost}")


def _check_place(folders: Iterable[Path]) -> None:
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise BundleError(f"{folder} is a file; give the name of a folder to create")
        if (folder / MANIFEST_FILE).is_file() and (folder / GRAPH_FILE).is_file():
            raise BundleError(
                f"{folder} is a bundle, and what is written into one is lost when it is replaced; choose another folder"
            )
