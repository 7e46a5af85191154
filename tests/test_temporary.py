"""What a killed process leaves is removed by the next one; what a living one holds, or others made, is not."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from flash_export.temporary import create_temporary_folder, open_temporary_file, remove_leftovers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOLDER = """
import sys
from pathlib import Path
from flash_export.temporary import create_temporary_folder, open_temporary_file

parent = Path(sys.argv[1])
with create_temporary_folder(parent) as folder, open_temporary_file(parent) as (file, stream):
    (folder / "deep").mkdir()
    (folder / "deep" / "a").write_bytes(b"in use")
    stream.write(b"in use")
    stream.flush()
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextmanager
def run_holder(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that holds a temporary file and folder until its stdin is closed."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        yield holder


def test_nothing_is_left(tmp_path: Path) -> None:
    with create_temporary_folder(tmp_path) as folder, open_temporary_file(tmp_path) as (file, stream):
        (folder / "a").write_bytes(b"a")
        stream.write(b"b")
        assert sorted(tmp_path.iterdir()) == sorted([folder, file])
    assert list(tmp_path.iterdir()) == []


def test_what_was_renamed_stays(tmp_path: Path) -> None:
    with create_temporary_folder(tmp_path) as folder, open_temporary_file(tmp_path) as (file, stream):
        stream.write(b"b")
        folder.rename(tmp_path / "folder")
        file.rename(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_bytes() == b"b"


def test_without_a_parent_it_lies_with_the_systems_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with create_temporary_folder() as folder:
        assert folder.parent == tmp_path


def test_living_process_keeps_its_own_and_a_killed_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with run_holder(tmp_path) as holder:
        held = sorted(tmp_path.iterdir())
        assert len(held) == 2
        remove_leftovers(tmp_path)
        with create_temporary_folder(tmp_path), open_temporary_file(tmp_path):
            assert set(held) < set(tmp_path.iterdir())
        assert sorted(tmp_path.iterdir()) == held
        holder.kill()
    assert sorted(tmp_path.iterdir()) == held
    remove_leftovers(None)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    name = ".flash-export-abcdefgh.tmp"
    for other in (f"{name}.old", f"x{name}", ".flash-export-ABCDEFGH.tmp", ".flash-export-short.tmp", "a"):
        (tmp_path / other).mkdir()
    (tmp_path / "a" / name).mkdir()  # below the folder that is looked at
    (tmp_path / name).symlink_to("a")
    before = sorted(tmp_path.rglob("*"))
    remove_leftovers(tmp_path, tmp_path / "none")
    assert sorted(tmp_path.rglob("*")) == before


def test_named_pipe_of_our_name_neither_blocks_nor_goes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".flash-export-abcdefgh.tmp")
    remove_leftovers(tmp_path)
    assert (tmp_path / ".flash-export-abcdefgh.tmp").is_fifo()


def test_another_users_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".flash-export-abcdefgh.tmp").mkdir()
    with monkeypatch.context() as context:
        context.setattr(os, "geteuid", lambda: os.getuid() + 1)
        remove_leftovers(tmp_path)
        assert len(list(tmp_path.iterdir())) == 1
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_file_system_without_locks_keeps_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, os.strerror(95))

    (tmp_path / ".flash-export-abcdefgh.tmp").mkdir()
    monkeypatch.setattr(fcntl, "flock", refuse)
    with create_temporary_folder(tmp_path), open_temporary_file(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".flash-export-abcdefgh.tmp"]


@pytest.mark.parametrize("make", [create_temporary_folder, open_temporary_file])
def test_what_is_removed_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: object
) -> None:
    flock = fcntl.flock
    removed: list[Path] = []

    def remove_first(descriptor: int, operation: int) -> None:
        if not removed:
            removed.extend(tmp_path.iterdir())
            for path in removed:
                path.rmdir() if path.is_dir() else path.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    assert callable(make)
    with make(tmp_path):
        (found,) = tmp_path.iterdir()
        assert [found] != removed
    shutil.rmtree(tmp_path)
