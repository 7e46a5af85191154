"""A validation that is killed and resumed gives the report of one that was not."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle

OPTIONS = ("--backend", "ort-cpu", "--threads", "1", "--no-latency")
COMMAND = (sys.executable, "-c", "from flash_export.cli.main import main; main()", "validate")
JOURNAL = ".validation.jsonl"


@pytest.fixture(scope="module")
def expected(masked_byte_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    subprocess.run([*COMMAND, masked_byte_bundle.path, *OPTIONS, "--report", folder], check=True, capture_output=True)
    return read_report(folder)


def read_report(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    report["environment"].pop("created")
    return report


def kill_after(command: list[str], journal: Path, lines: int, delay_s: float) -> None:
    """Kill a process some time after its journal has so many lines."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (journal.is_file() and journal.read_bytes().count(b"\n") >= lines):
        time.sleep(0.002)
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    process.wait()


def check_killed(bundle: Bundle, folder: Path, expected: dict[str, Any], seed: int) -> None:
    """Kill a validation at a random point, look at what it left, resume it."""
    rng = random.Random(seed)
    command = [*COMMAND, str(bundle.path), *OPTIONS, "--report", str(folder)]
    kill_after(command, folder / JOURNAL, rng.randint(1, 30), rng.random() * 0.03)
    assert (folder / JOURNAL).is_file()
    subprocess.run([*command, "--resume"], check=True, capture_output=True)
    assert read_report(folder) == expected
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]


def test_killed_and_resumed_is_as_uninterrupted(
    masked_byte_bundle: Bundle, tmp_path: Path, expected: dict[str, Any]
) -> None:
    check_killed(masked_byte_bundle, tmp_path / "reports", expected, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_killed_at_twenty_points(
    masked_byte_bundle: Bundle, tmp_path: Path, expected: dict[str, Any], seed: int
) -> None:
    check_killed(masked_byte_bundle, tmp_path / "reports", expected, seed)
