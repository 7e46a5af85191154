"""Links out of a bundle, and what is neither a file nor a folder, are refused and not opened."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from flash_export.bundle.plain_tree import check_plain_tree
from flash_export.errors import BundleError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder with a file, and one with a file in a folder of its own beside it."""
    for name in ("folder", "outside"):
        (tmp_path / name / "engines").mkdir(parents=True)
        (tmp_path / name / "engines" / "a.engine").write_bytes(b"plan")
        (tmp_path / name / "a").write_bytes(b"a")
    return tmp_path / "folder"


def test_plain_files_folders_and_hard_links_pass(folder: Path) -> None:
    os.link(folder.parent / "outside" / "a", folder / "engines" / "hard")
    check_plain_tree(folder)


def test_folder_behind_a_link_is_what_the_link_leads_to(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("folder")
    (folder / "b").symlink_to(tmp_path / "link" / "a")
    check_plain_tree(tmp_path / "link")


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("reports", "../outside"),
        ("b", "../outside/a"),
        ("engines/b.engine", "../../outside/a"),
        ("b", "/etc/passwd"),
        ("b", "../folder-of-longer-name"),
        ("b", ".."),
    ],
)
def test_link_out_is_refused(folder: Path, place: str, target: str) -> None:
    (folder / place).symlink_to(target)
    with pytest.raises(BundleError, match=rf"{place} is a symbolic link out of the bundle, which is not followed; put"):
        check_plain_tree(folder)


def test_link_out_by_way_of_a_link_inside_is_refused(folder: Path) -> None:
    (folder / "b").symlink_to("c")
    (folder / "c").symlink_to("../outside/a")
    with pytest.raises(BundleError, match="is a symbolic link out of the bundle"):
        check_plain_tree(folder)


def test_link_to_a_file_inside_passes(folder: Path) -> None:
    (folder / "engines" / "b.engine").symlink_to("../a")
    check_plain_tree(folder)


@pytest.mark.parametrize("target", [".", "engines", "nothing", "b"])
def test_link_inside_to_no_file_is_refused(folder: Path, target: str) -> None:
    (folder / "b").symlink_to(target)
    with pytest.raises(BundleError, match=r"b is a symbolic link to no plain file; put a file or folder in its place"):
        check_plain_tree(folder)


def test_named_pipe_and_socket_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(folder / "engines" / "pipe")
    with pytest.raises(
        BundleError, match=r"engines/pipe is a named pipe; a bundle holds plain files and folders alone"
    ):
        check_plain_tree(folder)
    (folder / "engines" / "pipe").unlink()
    monkeypatch.chdir(folder)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(BundleError, match="socket is a socket"):
            check_plain_tree(folder)


def test_folder_that_goes_away_during_the_walk_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def remove_then_scan(path: Path) -> object:
        (folder / "engines" / "a.engine").unlink(missing_ok=True)
        found = scandir(path)
        if (folder / "engines").exists():
            (folder / "engines").rmdir()
        return found

    monkeypatch.setattr(os, "scandir", remove_then_scan)
    check_plain_tree(folder)
    assert not (folder / "engines").exists()
