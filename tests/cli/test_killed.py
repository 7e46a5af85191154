"""Commands ended in the middle: SIGTERM and SIGHUP leave nothing, and what SIGKILL leaves goes with the next one."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle

# Runs a command that stops for good where it calls a function: MODULE NAME ARGUMENTS.
STALLED = """
import importlib, sys, time
from flash_export.cli.main import main

def stall(*_, **__):
    print("ready", flush=True)
    time.sleep(60)

owner = importlib.import_module(sys.argv[1])
*path, name = sys.argv[2].split(".")
for part in path:
    owner = getattr(owner, part)
setattr(owner, name, stall)
main(sys.argv[3:])
"""
FLUSH = ("os", "fsync")
TRIAL = ("flash_export.exporters.quantization.source", "SourceGraph.write")
COMMANDS = {
    "generate": (FLUSH, "generate {bundle} --tokens 97 --max-tokens 1 --threads 1 --save-state {folder}/text.state"),
    "validate": (FLUSH, "validate {bundle} --seq-lens 1 --batch 1 --backend ort-cpu --no-latency --threads 1"),
    "onnx": (FLUSH, "onnx {bundle} -o {folder}/new --max-seq-len 16"),
    "quantize": (TRIAL, "quantize {bundle} -o {folder}/new"),
}
NOT_OURS = "torchinductor_"  # a cache folder that PyTorch makes once for each user
QUICK = ("generate", "validate")


class Place:
    """A folder with a bundle in it, and a folder for temporary files of its own."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self.folder, self.bundle, self.temporary = folder, folder / "bundle", folder / "tmp"
        shutil.copytree(bundle.path, self.bundle)
        self.temporary.mkdir()
        self.environment = {**os.environ, "TMPDIR": str(self.temporary)}

    def list_temporary(self) -> list[str]:
        """Return our temporary files and folders, wherever they are."""
        paths = set(self.folder.rglob(".flash-export-*")) | set(self.temporary.iterdir())
        return sorted(str(path) for path in paths if not path.name.startswith(NOT_OURS))

    def fill(self, line: str) -> list[str]:
        return [word.format(bundle=self.bundle, folder=self.folder) for word in line.split()]

    def stop(self, name: str, number: signal.Signals) -> tuple[int, str]:
        """Send a signal to a command in the middle of its work; return its exit code and what it said."""
        (module, attribute), line = COMMANDS[name]
        command = [sys.executable, "-c", STALLED, module, attribute, *self.fill(line)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=self.environment, text=True) as process:
            assert process.stdout is not None
            assert any(line.endswith("ready\n") for line in process.stdout)  # generate writes its text before it
            assert self.list_temporary() != []
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
        # On a busy machine the work has taken so long that progress was shown.
        said = [line for line in errors.splitlines(keepends=True) if not re.fullmatch(r"\w+: .*, after \d+ s\n", line)]
        return process.returncode, "".join(said)

    def inspect(self) -> None:
        """Run another command on the bundle."""
        code = "from flash_export.cli.main import main; main()"
        command = [sys.executable, "-c", code, "inspect", str(self.bundle)]
        subprocess.run(command, check=True, capture_output=True, env=self.environment)


@pytest.fixture
def place(tmp_path: Path, causal_byte_bundle: Bundle) -> Place:
    return Place(tmp_path, causal_byte_bundle)


def mark_slow(names: dict[str, object]) -> list[object]:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", mark_slow(dict(COMMANDS)))
def test_terminated_command_leaves_nothing(place: Place, name: str) -> None:
    before = sorted(place.bundle.rglob("*"))
    assert place.stop(name, signal.SIGTERM) == (143, "Interrupted.\n")
    assert place.list_temporary() == []
    assert [path for path in sorted(place.bundle.rglob("*")) if path not in before] in ([], [place.bundle / "reports"])


@pytest.mark.usefixtures("default_hang_up")
def test_hang_up_and_ctrl_c_have_their_own_exit_codes(place: Place) -> None:
    assert place.stop("generate", signal.SIGHUP) == (129, "Interrupted.\n")
    assert place.stop("generate", signal.SIGINT) == (130, "Interrupted.\n")
    assert place.list_temporary() == []


@pytest.mark.parametrize("name", mark_slow(dict(COMMANDS)))
def test_what_a_killed_command_leaves_goes_with_the_next_one(place: Place, name: str) -> None:
    assert place.stop(name, signal.SIGKILL)[0] == -signal.SIGKILL
    assert place.list_temporary() != []
    place.inspect()
    assert place.list_temporary() == []


@pytest.mark.slow
def test_nothing_stays_of_commands_killed_at_any_moment(place: Place) -> None:
    rng = random.Random(0)
    code = "from flash_export.cli.main import main; main()"
    for name in [*COMMANDS] * 8:
        command = [sys.executable, "-c", code, *place.fill(COMMANDS[name][1])]
        start = time.monotonic()
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=place.environment
        ) as process:
            try:
                process.wait(timeout=rng.uniform(1.0, 12.0))
            except subprocess.TimeoutExpired:
                process.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM]))
                process.wait(timeout=60)
        assert time.monotonic() - start < 90
        shutil.rmtree(place.folder / "new", ignore_errors=True)
        place.inspect()
        assert place.list_temporary() == []
