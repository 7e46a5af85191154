"""One holder at a time, the next one told, and a folder that is exchanged meanwhile noticed."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from flash_export import locks
from flash_export.errors import BundleError
from flash_export.locks import is_in_place, lock_folder

if TYPE_CHECKING:
    from pathlib import Path


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    inside, most = [], []

    def work() -> None:
        for _ in range(20):
            with lock_folder(tmp_path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0002)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 80
    assert set(most) == {1}


def test_wait_without_end_is_one_line(tmp_path: Path) -> None:
    message = "has been changed by another process for more than 0.05 s; run it again when that has ended"
    with lock_folder(tmp_path), pytest.raises(BundleError, match=message), lock_folder(tmp_path, timeout_s=0.05):
        pytest.fail("both hold it")


def test_wait_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(locks, "_PATIENCE_S", 0.0)
    with lock_folder(tmp_path), pytest.raises(BundleError), lock_folder(tmp_path, timeout_s=0.2):
        pytest.fail("both hold it")
    assert [record.getMessage() for record in caplog.records] == [
        f"Waiting for another process that changes {tmp_path}"
    ]


def test_lock_is_let_go_of_when_the_block_raises(tmp_path: Path) -> None:
    with pytest.raises(KeyError), lock_folder(tmp_path):
        raise KeyError
    with lock_folder(tmp_path, timeout_s=0.0):
        pass


def test_folder_exchanged_during_the_wait_is_locked_as_it_is_now(tmp_path: Path) -> None:
    folder, other = tmp_path / "folder", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    locked = threading.Event()
    seen: list[str] = []

    def wait() -> None:
        with lock_folder(folder):
            seen.append((folder / "name").read_text())
            locked.set()

    with lock_folder(folder):
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(3 * locks._POLL_S)
        (other / "name").write_text("new")
        folder.rename(tmp_path / "old")
        other.rename(folder)
        assert locked.wait(5), "the lock of the folder that is gone keeps no one from the new one"
    waiting.join()
    assert seen == ["new"]


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), lock_folder(tmp_path / "none"):
        pytest.fail("there is nothing to lock")


def test_link_to_a_folder_locks_the_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    with lock_folder(tmp_path / "link"), pytest.raises(BundleError), lock_folder(tmp_path / "folder", timeout_s=0.0):
        pytest.fail("both hold it")


def test_file_system_without_locks_locks_nobody_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_folder(tmp_path), lock_folder(tmp_path, timeout_s=0.0):
        pass


def test_what_was_renamed_is_not_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("w") as stream:
        assert is_in_place(path, stream.fileno())
        path.rename(tmp_path / "elsewhere")
        assert not is_in_place(path, stream.fileno())
        path.write_text("another one")
        assert not is_in_place(path, stream.fileno())
