"""What every benchmark ends with: a table on the terminal, and JSON that says where the numbers come from."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

PACKAGES = ("torch", "onnx", "onnxruntime", "flash-pytorch", "onnxslim", "tensorrt-rtx-cu13", "numpy")
PAGE_WIDTH = 120
MIB = 1 << 20


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with what all benchmarks take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers and the environment there")
    parser.add_argument("--quick", action="store_true", help="a tiny model: shows that the benchmark runs, no more")
    return parser


def describe_environment() -> dict[str, Any]:
    """Return the machine, its load, the versions, and the commit of the code that was measured."""
    return {
        "processor": _read_processor(),
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "platform": platform.platform(terse=True),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "python": platform.python_version(),
        "packages": {name: _read_version(name) for name in PACKAGES},
        "commit": _read_commit(),
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def write_json(path: Path | None, results: dict[str, Any]) -> None:
    """Write the results, if a file was asked for, with the environment before them."""
    if path is not None:
        path.write_text(json.dumps({"environment": describe_environment(), **results}, indent=2) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table whose first column is text and whose others are numbers."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_format_cell(cell) for cell in row))
    Console(width=PAGE_WIDTH if not Console().is_terminal else None).print(table)


def judge(value: float, *, at_least: float | None = None, at_most: float | None = None) -> str:
    """Say whether a target is reached, and what it was."""
    if at_least is not None:
        return f"{'reached' if value >= at_least else 'NOT reached'} (>= {at_least:g})"
    return f"{'reached' if at_most is not None and value <= at_most else 'NOT reached'} (<= {at_most:g})"


def _format_cell(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 10 else f"{cell:.1f}"
    return "-" if cell is None else str(cell)


def _read_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read_processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _read_commit() -> str | None:
    """Return the commit, with ``+`` if the code has changed since."""
    folder = Path(__file__).parent

    def run_git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout

    try:
        commit = run_git("rev-parse", "--short", "HEAD").strip()
        changed = run_git("status", "--porcelain", "--untracked-files=no", "--", "../exporters", "../flash_export")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed.strip() else "")
