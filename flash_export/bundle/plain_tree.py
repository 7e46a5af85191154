"""What a bundle may consist of: plain files and folders, and links from one of its files to another.

A bundle may come from anywhere. A link could lead its readers, and its writers, to files of the user that have nothing
to do with it, and a named pipe would keep them waiting, so nothing of the kind is opened.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from flash_export.errors import BundleError


def check_plain_tree(folder: Path) -> None:
    """Walk a folder without following or opening anything in it.

    A symbolic link is accepted if it leads to a plain file in the same folder. What other processes remove during the
    walk is none of its business.

    Raises:
        BundleError: Something in it is another link, a named pipe, a socket or a device.
    """
    root = Path(os.path.realpath(folder))
    folders = [folder]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except FileNotFoundError:
            continue
        for entry in entries:
            if entry.is_symlink():
                _check_link(Path(entry.path), root)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            elif not entry.is_file(follow_symlinks=False):
                _refuse_special(Path(entry.path))


def _check_link(path: Path, root: Path) -> None:
    target = Path(os.path.realpath(path))
    if not target.is_relative_to(root):
        raise BundleError(
            f"{path} is a symbolic link out of the bundle, which is not followed; put what it leads to in its place, "
            "or remove it"
        )
    if not target.is_file():
        raise BundleError(f"{path} is a symbolic link to no plain file; put a file or folder in its place")


def _refuse_special(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    kinds = {stat.S_ISFIFO: "a named pipe", stat.S_ISSOCK: "a socket"}
    kind = next((name for is_kind, name in kinds.items() if is_kind(mode)), "a device")
    raise BundleError(f"{path} is {kind}; a bundle holds plain files and folders alone, remove it")
