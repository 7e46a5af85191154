"""Atomic writes: whatever fails or is killed, the old content is whole or the new one is."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flash_export.errors import BundleError
from flash_export.files import hash_file, hash_files, link_folder, replace_folder, write_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WRITES = (lambda path: write_file(path, b"new"), lambda path: replace_folder(path).__enter__())
NUM_KILLS = 10
NUM_FILES = 6
NUM_REPEATS = 5000


class FullDisk:
    """Stands in for a function that works ``working_calls`` times and then finds the disk full."""

    def __init__(self, function: Callable[..., Any], working_calls: int = 0) -> None:
        self.function = function
        self.working_calls = working_calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.working_calls -= 1
        if self.working_calls < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.function(*args, **kwargs)


class HalfWrittenStream:
    """A file that takes the first half of what is written, then finds the disk full."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __enter__(self) -> HalfWrittenStream:
        return self

    def __exit__(self, *args: object) -> None:
        self.stream.close()

    def write(self, data: bytes) -> None:
        self.stream.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def list_tree(folder: Path) -> dict[str, bytes | None]:
    """Return every path below a folder, hidden ones too, with the content of the files."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide renameat2, which only Linux has, and there not every file system."""
    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **kwargs: object())


def write_old_folder(target: Path) -> None:
    target.mkdir()
    (target / "a").write_bytes(b"old")
    (target / "engines").mkdir()
    (target / "engines" / "b").write_bytes(b"old engine")


def test_hash_is_the_sha256_of_the_content(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(data)
    assert hash_file(tmp_path / "file") == sha256(data).hexdigest()


def test_hashes_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    paths = [tmp_path / str(index) for index in range(20)]
    for index, path in enumerate(paths):
        path.write_bytes(bytes([index]) * 100_000 * (20 - index))
    assert hash_files(paths) == [sha256(path.read_bytes()).hexdigest() for path in paths]
    with pytest.raises(FileNotFoundError):
        hash_files([*paths, tmp_path / "none"])


def test_written_file_replaces_the_old_one_and_everyone_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_file(path, b"old")
    write_file(path, b"new")
    assert list_tree(tmp_path) == {"new": None, "new/file": b"new"}
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("place", ["os.fsync", "pathlib.Path.chmod", "pathlib.Path.replace"])
def test_full_disk_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str) -> None:
    write_file(tmp_path / "file", b"old")
    with monkeypatch.context() as context:
        context.setattr(place, FullDisk(lambda: None))
        with pytest.raises(BundleError, match=r"cannot write .*file: No space left on device; free some space"):
            write_file(tmp_path / "file", b"new")
    assert list_tree(tmp_path) == {"file": b"old"}


def test_file_half_written_when_the_disk_is_full_leaves_the_old_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_file(tmp_path / "file", b"old")
    fdopen = os.fdopen
    with monkeypatch.context() as context:
        context.setattr(os, "fdopen", lambda *args: HalfWrittenStream(fdopen(*args)))
        with pytest.raises(BundleError, match="No space left on device"):
            write_file(tmp_path / "file", b"something new")
    assert list_tree(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize(
    "write", [lambda path: write_file(path, b"new"), lambda path: replace_folder(path).__enter__()]
)
def test_place_that_cannot_be_written_is_an_error(tmp_path: Path, write: Callable[[Path], object]) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(BundleError, match="choose a folder that you may write to"):
        write(tmp_path / "file" / "below")
    assert list_tree(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize(
    "write", [lambda path: write_file(path, b"new"), lambda path: replace_folder(path).__enter__()]
)
def test_full_disk_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, write: Callable[[Path], object]
) -> None:
    for name in ("mkdtemp", "mkstemp"):
        monkeypatch.setattr(f"tempfile.{name}", FullDisk(lambda: None))
    with pytest.raises(BundleError, match="No space left on device"):
        write(tmp_path / "target")
    assert list_tree(tmp_path) == {}


def test_folder_is_created_where_there_was_none(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    with replace_folder(target) as staging:
        (staging / "a").write_bytes(b"new")
        (staging / "a").chmod(0o600)
        assert not target.exists()
    assert list_tree(tmp_path) == {"deep": None, "deep/target": None, "deep/target/a": b"new"}
    assert target.stat().st_mode & 0o777 == 0o755
    assert (target / "a").stat().st_mode & 0o777 == 0o644


def check_replaced(target: Path) -> None:
    write_old_folder(target)
    with replace_folder(target) as staging:
        (staging / "a").write_bytes(b"new")
        assert (target / "a").read_bytes() == b"old"
    assert list_tree(target.parent) == {"target": None, "target/a": b"new"}


def test_folder_is_replaced_whole(tmp_path: Path) -> None:
    check_replaced(tmp_path / "target")


@pytest.mark.usefixtures("without_exchange")
def test_folder_is_replaced_whole_without_exchange(tmp_path: Path) -> None:
    check_replaced(tmp_path / "target")


def test_folder_behind_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    write_old_folder(tmp_path / "versions")
    (tmp_path / "link").symlink_to("versions")
    with replace_folder(tmp_path / "link") as staging:
        (staging / "a").write_bytes(b"new")
    assert (tmp_path / "link").is_symlink()
    assert list_tree(tmp_path / "versions") == {"a": b"new"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "versions"]


def test_current_folder_is_not_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(BundleError, match="is the current folder"), replace_folder(Path()):
        pytest.fail("the block must not run")
    assert list_tree(tmp_path) == {"here": None}


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt()])
def test_block_that_raises_leaves_the_old_folder(tmp_path: Path, error: BaseException) -> None:
    write_old_folder(tmp_path / "target")
    before = list_tree(tmp_path)

    def replace() -> None:
        with replace_folder(tmp_path / "target") as staging:
            (staging / "a").write_bytes(b"new")
            raise error

    with pytest.raises(type(error)):
        replace()
    assert list_tree(tmp_path) == before


def check_full_disk(tmp_path: Path) -> None:
    """Fail while a folder is replaced; the old one must still be there, and nothing else."""
    write_old_folder(tmp_path / "target")
    before = list_tree(tmp_path)

    def replace() -> None:
        with replace_folder(tmp_path / "target") as staging:
            for name in ("a", "c"):
                (staging / name).write_bytes(b"new")

    with pytest.raises(BundleError, match=r"cannot write .*target: No space left on device; free some space"):
        replace()
    assert list_tree(tmp_path) == before


@pytest.mark.parametrize("working_calls", [0, 1, 2])
def test_full_disk_while_flushing_leaves_the_old_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, working_calls: int
) -> None:
    monkeypatch.setattr(os, "fsync", FullDisk(os.fsync, working_calls))
    check_full_disk(tmp_path)


def test_full_disk_while_writing_leaves_the_old_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disk = FullDisk(Path.write_bytes, 3)
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: disk(self, data))
    check_full_disk(tmp_path)


@pytest.mark.usefixtures("without_exchange")
@pytest.mark.parametrize("place", ["aside", "into place"])
def test_failed_rename_leaves_the_old_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str) -> None:
    rename = Path.rename
    failures = {"aside": "target", "into place": ".tmp"}

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(failures[place]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    check_full_disk(tmp_path)


WRITER = """
import os, sys
from itertools import count
from pathlib import Path
from flash_export.files import replace_folder, write_file

target, kind, num_files, repeats = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for number in count():
    data = f"{os.getpid()}-{number};".encode() * repeats
    if kind == "file":
        write_file(target, data)
    else:
        with replace_folder(target) as staging:
            for index in range(num_files):
                (staging / f"{index}.bin").write_bytes(data)
    if number == 0:
        print("ready", flush=True)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_killed_writer_leaves_the_old_content_or_the_new(tmp_path: Path, kind: str) -> None:
    target, rng = tmp_path / "target", random.Random(0)
    for _ in range(NUM_KILLS):
        command = [sys.executable, "-c", WRITER, str(target), kind, str(NUM_FILES), str(NUM_REPEATS)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                writer.wait(timeout=rng.uniform(0.0, 0.1))
            writer.kill()
        assert writer.returncode == -signal.SIGKILL
        check_whole(target, kind, writer.pid)


def check_whole(target: Path, kind: str, pid: int) -> None:
    """Check that all files are there, whole, and of one version that this writer wrote."""
    files = [target] if kind == "file" else sorted(target.iterdir())
    names = ["target"] if kind == "file" else sorted(f"{index}.bin" for index in range(NUM_FILES))
    assert [path.name for path in files] == names
    (content,) = {path.read_bytes() for path in files}
    version = content[: len(content) // NUM_REPEATS]
    assert version.startswith(f"{pid}-".encode())
    assert content == version * NUM_REPEATS


STUCK_WRITER = """
import sys
from pathlib import Path
from flash_export.files import replace_folder

with replace_folder(Path(sys.argv[1])) as staging:
    (staging / "a").write_bytes(b"of another process")
    print(staging.name, flush=True)
    sys.stdin.read()
"""


@contextmanager
def run_stuck_writer(target: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Start a process that replaces ``target`` once its stdin is closed; yield it and its staging folder."""
    command = [sys.executable, "-c", STUCK_WRITER, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        staging = target.parent / writer.stdout.readline().decode().strip()
        assert (staging / "a").is_file()
        yield writer, staging


def test_folder_of_a_killed_process_is_removed_by_the_next_one(tmp_path: Path) -> None:
    target = tmp_path / "target[1]"  # no pattern, though it looks like one
    write_old_folder(target)
    with run_stuck_writer(target) as (writer, staging):
        writer.kill()
    assert writer.returncode == -signal.SIGKILL
    assert staging.is_dir()
    with replace_folder(target) as own:
        assert not staging.exists()
        (own / "a").write_bytes(b"new")
    assert list_tree(tmp_path) == {target.name: None, f"{target.name}/a": b"new"}


def test_folder_of_a_living_process_stays(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with run_stuck_writer(target) as (writer, staging):
        with replace_folder(target) as own:
            (own / "a").write_bytes(b"new")
        assert (staging / "a").is_file()
        assert list_tree(target) == {"a": b"new"}
        writer.communicate()
    assert writer.returncode == 0
    assert list_tree(tmp_path) == {"target": None, "target/a": b"of another process"}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_left_is_removed_by_the_next_write_beside_it(tmp_path: Path, kind: str) -> None:
    command = [sys.executable, "-c", KILLED_WRITER, str(tmp_path / "target"), kind]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len(list_tree(tmp_path)) > 0
    write_file(tmp_path / "another", b"new")
    assert list_tree(tmp_path) == {"another": b"new"}


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from flash_export.files import replace_folder, write_file

os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "file":
    write_file(Path(sys.argv[1]), b"half")
with replace_folder(Path(sys.argv[1])) as staging:
    (staging / "a").write_bytes(b"half")
"""


def test_new_folder_is_not_written_over_what_another_process_made(tmp_path: Path) -> None:
    target = tmp_path / "target"

    def replace(*, overwrite: bool) -> None:
        with replace_folder(target, overwrite=overwrite) as staging:
            (staging / "a").write_bytes(b"ours")
            write_old_folder(target)

    with pytest.raises(BundleError, match=r"target was made by another process in the meantime; choose another folder"):
        replace(overwrite=False)
    assert list_tree(target)["a"] == b"old"
    shutil.rmtree(target)
    replace(overwrite=True)
    assert list_tree(tmp_path) == {"target": None, "target/a": b"ours"}


def test_of_many_who_make_one_folder_the_first_succeeds(tmp_path: Path) -> None:
    target, together = tmp_path / "target", threading.Barrier(8)

    def make(number: int) -> int | None:
        try:
            with replace_folder(target, overwrite=False) as staging:
                (staging / "a").write_bytes(bytes([number]))
                together.wait(30)
        except BundleError:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(make, range(8)))
    (winner,) = [number for number in found if number is not None]
    assert list_tree(tmp_path) == {"target": None, "target/a": bytes([winner])}


def test_empty_folder_is_replaced_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with replace_folder(tmp_path / "target", overwrite=False) as staging:
        (staging / "a").write_bytes(b"new")
    assert list_tree(tmp_path) == {"target": None, "target/a": b"new"}


def test_what_is_replaced_keeps_its_permissions(tmp_path: Path) -> None:
    write_old_folder(tmp_path / "target")
    (tmp_path / "target").chmod(0o700)
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "file").chmod(0o600)
    with replace_folder(tmp_path / "target") as staging:
        (staging / "a").write_bytes(b"new")
    write_file(tmp_path / "file", b"new")
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("target", "target/a", "file")}
    assert modes == {"target": 0o700, "target/a": 0o644, "file": 0o600}


def test_link_in_the_place_of_a_file_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"old")
    (tmp_path / "precious").chmod(0o600)
    (tmp_path / "file").symlink_to("precious")
    write_file(tmp_path / "file", b"new")
    assert list_tree(tmp_path) == {"precious": b"old", "file": b"new"}
    assert (tmp_path / "precious").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "file").is_symlink()


def test_linked_folder_is_the_same_files_with_the_same_permissions(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    write_old_folder(source)
    (source / "a").chmod(0o600)
    (source / "engines" / "out").symlink_to("/etc/passwd")
    (source / "skipped").write_bytes(b"skipped")
    with replace_folder(target) as staging:
        link_folder(source, staging, {"skipped"})
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*")) == [
        "a",
        "engines",
        "engines/b",
        "engines/out",
    ]
    assert (target / "a").samefile(source / "a")
    assert (target / "a").stat().st_mode & 0o777 == 0o600
    assert (target / "engines" / "out").is_symlink()
    link_folder(tmp_path / "none", target, ())


def test_file_system_without_locks_is_written_as_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fcntl, "flock", FullDisk(lambda: None))
    write_old_folder(tmp_path / "target")
    with replace_folder(tmp_path / "target") as staging:
        (staging / "a").write_bytes(b"new")
    assert list_tree(tmp_path) == {"target": None, "target/a": b"new"}
