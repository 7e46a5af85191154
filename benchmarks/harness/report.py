"""What every benchmark begins and ends with: its options; tables, and JSON that says where the numbers come from.

Tables of a page in docs/ are written between two markers, so that no figure there is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import platform
import re
import subprocess
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table as RichTable

from flash_export.errors import ConfigError
from flash_export.report.document import Table, TableRow, number, text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PACKAGES = ("torch", "onnx", "onnxruntime", "flash-pytorch", "onnxslim", "tensorrt-rtx-cu13", "numpy")
PAGE_WIDTH = 120
BEGIN, END = "<!-- precision table: begin -->", "<!-- precision table: end -->"


@dataclass(frozen=True)
class Figure:
    """What was measured, how much it is (None: it could not be measured), and whether its target is reached."""

    name: str
    value: float | None
    target: str | None = None

    @classmethod
    def judge(cls, name: str, value: float | None, **target: float) -> Figure:
        """Compare a value with its target, see :func:`judge`."""
        return cls(name, value, judge(value, **target))


def make_parser(
    description: str | None, *, models: bool = False, lengths: bool = False, only: str = ""
) -> argparse.ArgumentParser:
    """Return a parser.

    Args:
        description: The docstring of the script.
        models: Whether one of the two models can be chosen, see :func:`harness.models.select_configs`.
        lengths: Whether the lengths can be chosen.
        only: Of what some can be chosen by their names.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers and the environment there")
    parser.add_argument("--quick", action="store_true", help="a tiny model: shows that the benchmark runs, no more")
    if models:
        kind = parser.add_mutually_exclusive_group()
        kind.add_argument("--causal", dest="causal", action="store_true", default=None, help="the causal model alone")
        kind.add_argument("--non-causal", dest="causal", action="store_false", help="the non-causal model alone")
    if lengths:
        parser.add_argument("--lengths", type=lambda text: [int(part) for part in text.split(",")])
    if only:
        parser.add_argument("--only", default="", metavar="TEXT", help=f"the {only} whose name contains this")
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
        "packages": {name: next((one.version for one in metadata.distributions(name=name)), None) for name in PACKAGES},
        "commit": _read_commit(),
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def write_json(path: Path | None, results: dict[str, Any]) -> None:
    """Write the results, if a file was asked for, with the environment before them."""
    if path is not None:
        path.write_text(json.dumps({"environment": describe_environment(), **results}, indent=2) + "\n")


def describe(row: Any, *properties: str) -> dict[str, Any]:
    """Return the fields of a dataclass, and some of its properties."""
    return {**asdict(row), **{name: getattr(row, name) for name in properties}}


def print_rows(title: str, rows: Sequence[Any], columns: Mapping[str, str]) -> None:
    """Print a table of objects: by heading an attribute, with its format if it has one, as ``timings.spread:.0%``."""
    print_table(title, tuple(columns), tabulate(rows, columns))


def tabulate(rows: Sequence[Any], columns: Mapping[str, str]) -> list[list[object]]:
    """Return the cells of such a table."""
    return [[_read_cell(row, column) for column in columns.values()] for row in rows]


def print_figures(title: str, figures: Sequence[Figure]) -> None:
    """Print figures and their targets."""
    print_rows(title, figures, {"": "name", "measured": "value", "target": "target"})


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], left: int = 1) -> None:
    """Print a table whose first columns are text and whose others are numbers."""
    table = RichTable(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(format_cell, row))
    Console(width=PAGE_WIDTH if not Console().is_terminal else None).print(table)


def make_table(rows: Sequence[Any], columns: Mapping[str, str], left: int = 2) -> Table:
    """Return a table of a report, see :func:`tabulate`, whose first columns are text and whose others are numbers."""
    heads = [(text if index < left else number)(name) for index, name in enumerate(columns)]
    cells = [[None if cell is None else format_cell(cell) for cell in row] for row in tabulate(rows, columns)]
    return Table(tuple(heads), tuple(TableRow(tuple(row)) for row in cells))


def write_between_markers(path: Path, lines: Sequence[str]) -> None:
    """Replace what stands between the markers of a page.

    Raises:
        ConfigError: The page has not both of them, once, in order.
    """
    page = path.read_text(encoding="utf-8")
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ConfigError(f"{path} has no place for the tables; add the lines {BEGIN} and {END} to it, in this order")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text("\n".join((f"{before}{BEGIN}\n", *lines, f"\n{END}{after}")), encoding="utf-8")


def format_cell(cell: object) -> str:
    """Return text as it is, numbers in three digits, and a range as its ends."""
    if isinstance(cell, tuple):
        return " to ".join(map(format_cell, cell))
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 10 else f"{cell:.1f}"
    return "-" if cell is None else str(cell)


def judge(value: float | None, *, at_least: float | None = None, at_most: float | None = None) -> str:
    """Say whether a target is reached, and what it was."""
    if value is None:
        return "NOT reached (not measured)"
    if at_least is not None:
        return f"{'reached' if value >= at_least else 'NOT reached'} (>= {at_least:g})"
    return f"{'reached' if at_most is not None and value <= at_most else 'NOT reached'} (<= {at_most:g})"


def _read_cell(row: Any, column: str) -> object:
    name, _, form = column.partition(":")
    value = operator.attrgetter(name)(row)
    return format(value, form) if form and value is not None else value


def _read_processor() -> str:
    facts = Path("/proc/cpuinfo")
    name = re.search(r"^model name\s*:\s*(.+)$", facts.read_text(), re.MULTILINE) if facts.exists() else None
    return name[1] if name else platform.processor() or "unknown"


def _read_commit() -> str | None:
    """Return the commit, with ``+`` if the code has changed since."""

    def run_git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parents[2]), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = run_git("status", "--porcelain", "--untracked-files=no", "--", "exporters", "flash_export")
        return run_git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
