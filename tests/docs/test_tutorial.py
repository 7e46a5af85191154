"""What docs/tutorial.md shows runs, as it stands there, and prints what it shows.

The script of the page is the block ``python train.py``; each ``sh`` block is run by a shell. A ``text`` block after it
is what it prints: ``text fails`` with exit code 1, ``Error: ...`` with 2; ``text example`` depends on the trained
weights and is not compared. Numbers are not compared either, and ``...`` stands for anything.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.docs.pages import ROOT, read_fences

if TYPE_CHECKING:
    from pathlib import Path

PAGE = ROOT / "docs" / "tutorial.md"
FENCES = read_fences(PAGE)
PAIRS = [
    (block, *(FENCES[index + 1] if FENCES[index + 1][0].startswith("text") else ("text", "")))
    for index, (info, block) in enumerate(FENCES)
    if info == "sh"
]
COMMANDS = [pair for pair in PAIRS if not pair[0].startswith("pip ")]
TRAINING = "python train.py\n"
STEPS = 30  # a quarter of a minute; the page's own number takes minutes


def test_installation_is_that_of_the_readme() -> None:
    lines = [line for block, *_ in PAIRS if block.startswith("pip ") for line in block.splitlines()]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pinned = re.findall(r'"(flash-pytorch==[^"]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))

    assert len(lines) == 3
    assert all(line in readme for line in lines[:2])
    assert lines[2].split()[2] == pinned[0]


def test_every_command_is_followed() -> None:
    assert len(COMMANDS) >= 14
    assert [block for block, *_ in COMMANDS].count(TRAINING) == 1
    for command in ("onnx", "inspect", "validate", "quantize", "compare", "generate", "trt", "standalone", "triton"):
        assert any(f"flash-export {command} " in block for block, *_ in COMMANDS), command


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_page_runs_in_order(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="engines are built here with TensorRT-RTX alone")
    import torch

    if torch.cuda.is_available():
        pytest.skip("the page is that of a machine without a GPU")
    environment = _install_names(tmp_path / "bin")
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "train.py").write_text(dict(FENCES)["python train.py"])

    for block, info, shown in COMMANDS:
        script = block.replace(TRAINING, f"python train.py --steps {STEPS}\n")
        run = subprocess.run(
            ["bash", "-e", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        wanted = 2 if shown.startswith("Error: ") else 1 if info == "text fails" else 0
        assert run.returncode == wanted, f"{block}{run.stdout}{run.stderr}"
        if info != "text example":
            printed = _mask(f"{run.stdout}\n{run.stderr}")
            missing = [part for part in _cut(shown) if part not in printed]
            assert missing == [], f"{block}does not print this: {missing}\n{run.stdout}{run.stderr}"


def _install_names(folder: Path) -> dict[str, str]:
    """Return an environment in which ``python`` and ``flash-export`` are those that run this test."""
    folder.mkdir()
    for name, arguments in (("python", ()), ("flash-export", ("-m", "flash_export"))):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, *arguments])} "$@"\n')
        script.chmod(0o755)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": path, "COLUMNS": "80"}


def _mask(text: str) -> str:
    """Return a text in one line, with its numbers and their units of time masked."""
    masked = re.sub(r"# (ms|us|s)\b", "#", re.sub(r"[-+]?\d[\d.,]*(e[-+]?\d+)?", "#", text))
    return " ".join(masked.split())


def _cut(shown: str) -> list[str]:
    """Return the parts of a shown output that lie between dots, line by line, masked."""
    parts = [part for line in shown.splitlines() for part in line.split("...")]
    return [masked for part in parts if (masked := _mask(part))]
