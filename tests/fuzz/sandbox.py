"""One input of the fuzzer: a folder of its own, the damage, the run, and what must hold after it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from click.testing import CliRunner

from flash_export.cli.main import main
from flash_export.errors import MAX_MESSAGE_CHARACTERS, FlashExportError
from tests.fuzz.command_lines import draw_command_line
from tests.fuzz.material import sign_bundle
from tests.fuzz.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_GOOD_EXIT_CODES = (0, 1, 2)
_COMMAND_LINES = 12  # their weight beside those of the targets
_SHOWN = 3000
_ERROR = "Error: "
_OF_PYTORCH = "torchinductor_"  # an empty folder, made when PyTorch's exporter is imported


@dataclass(frozen=True)
class Finding:
    """What is wrong with the answer to an input.

    Attributes:
        index: Which input, of the seed.
        what: What was damaged and what was run.
        fault: What must not be.
    """

    index: int
    what: str
    fault: str

    def __str__(self) -> str:
        return f"input {self.index}: {self.what}\n  {self.fault}"


def run_input(seed: int, index: int, material: Path, folder: Path) -> Finding | None:
    """Make an input, run it, and return what is wrong with the answer; None if nothing is.

    Args:
        seed: Of all inputs.
        index: Of this one; the two decide what it is.
        material: Good files; they are copied.
        folder: Where it is run; it must not exist, and does not afterwards.
    """
    rng = random.Random(f"{seed}:{index}")
    inside, outside = folder / "inside", folder / "outside"
    try:
        for name in ("outside", "tmp", "home"):
            (folder / name).mkdir(parents=True)
        (outside / "secret").write_text("not to be read, nor written")
        shutil.copytree(material, inside)
        what, run = _draw(rng, inside)
        before = _describe(folder, inside)
        with _live_in(folder):
            fault = run()
        if fault is None and (changed := before ^ _describe(folder, inside)):
            fault = f"written outside of the given folder: {sorted(changed)[:4]}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return None if fault is None else Finding(index, what, fault)


def _draw(rng: random.Random, inside: Path) -> tuple[str, Callable[[], str | None]]:
    target = rng.choices((None, *TARGETS), (_COMMAND_LINES, *(target.weight for target in TARGETS)))[0]
    if target is None:
        line = draw_command_line(rng)
        return f"flash-export {' '.join(map(ascii, line))[:_SHOWN]}", lambda: _run_command(line)
    path = inside / target.file
    path.write_bytes(target.mutate(rng, path.read_bytes()))
    is_signed = rng.random() < target.signed
    if is_signed:
        sign_bundle(path.parent)
    use = rng.choice(target.uses)
    damage = f"{target.file}{', signed' if is_signed else ''}"
    if callable(use):
        return f"{damage}: {use.__name__}", lambda: _run_call(use, inside)
    return f"{damage}: flash-export {use}", lambda: _run_command(use.split())


def _run_command(line: list[str]) -> str | None:
    result = CliRunner().invoke(main, line, prog_name="flash-export")
    if result.exit_code not in _GOOD_EXIT_CODES or (result.exception and not isinstance(result.exception, SystemExit)):
        trace = "".join(traceback.format_exception(result.exception)) if result.exception else ""
        again = CliRunner().invoke(main, ["--traceback", *line], prog_name="flash-export").stderr
        return f"exit code {result.exit_code}: {result.stderr[:_SHOWN]}\n{trace[-_SHOWN:]}\n{again[-_SHOWN:]}"
    if result.exit_code != 2:  # what else is printed is no message
        return None
    *notices, last = result.stderr.splitlines() or [""]  # warnings and progress come first
    if not last.startswith(_ERROR) or any("Error" in notice or "Traceback" in notice for notice in notices):
        return f"no one line of error: {result.stderr[:_SHOWN]}"
    return _judge_message(last.removeprefix(_ERROR))


def _run_call(call: Callable[[Path], object], inside: Path) -> str | None:
    try:
        call(inside)
    except FlashExportError as error:
        return _judge_message(str(error))
    except BaseException as error:
        return f"{type(error).__name__}\n{''.join(traceback.format_exception(error))[-_SHOWN:]}"
    return None


def _judge_message(message: str) -> str | None:
    if len(message) > MAX_MESSAGE_CHARACTERS + 100 or not message.isprintable():  # click adds where to read on
        return f"a message of {len(message)} characters, or with invisible ones: {message[:_SHOWN]!r}"
    return None


@contextlib.contextmanager
def _live_in(folder: Path) -> Iterator[None]:
    """Make a folder all that a process sees: its working folder, its home, its folder of temporary files."""
    places = {"TMPDIR": folder / "tmp", "HOME": folder / "home"}
    former, here = {name: os.environ.get(name) for name in places}, Path.cwd()
    os.environ.update({name: str(path) for name, path in places.items()})
    tempfile.tempdir = None
    os.chdir(folder / "inside")
    try:
        yield
    finally:
        os.chdir(here)
        tempfile.tempdir = None
        for name, value in former.items():
            if value is not None:
                os.environ[name] = value
            else:
                del os.environ[name]


def _describe(folder: Path, inside: Path) -> set[tuple[str, int, int]]:
    """Return every folder outside of ``inside``, and every file with its size and time."""
    paths = [path for path in folder.rglob("*") if path != inside and inside not in path.parents]
    kept = [path for path in paths if not path.name.startswith(_OF_PYTORCH)]
    return {
        (str(path.relative_to(folder)), *((0, 0) if path.is_dir() else (path.stat().st_size, path.stat().st_mtime_ns)))
        for path in kept
    }
