"""Parsing, and showing progress, that several commands share."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flash_export.errors import ConfigError
from flash_export.reading import parse_json, read_json_object

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

STDOUT = "-"


class IntegerList(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Whole numbers separated by commas: ``1,17,300``."""

    name = "N,N,..."

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers; write it like 1,17,300", param, ctx)


@contextlib.contextmanager
def show_progress(console: Console, title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show a bar on a terminal while the block runs; what is yielded takes work done, work in all, and what is next."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(title), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("loading", total=None)

        def update(done: int, total: int, label: str) -> None:
            bar.update(task, completed=done, total=total, description=label)

        yield update


def parse_config(config_file: str | None, assignments: tuple[str, ...]) -> dict[str, Any] | None:
    """Merge ``--config FILE`` and ``--set NAME=VALUE``; None if neither was given.

    Values of ``--set`` are JSON (``true``, ``256``, ``1.5``), or else plain text.

    Raises:
        ConfigError: The file is no JSON object, or an assignment has no ``=``.
    """
    if config_file is None and not assignments:
        return None
    values = {}
    if config_file is not None:
        values = read_json_object(Path(config_file), ConfigError, "give --config a file with a JSON object")
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set {assignment!r} has no name and value; write --set causal=true")
        try:
            values[name.strip()] = parse_json(text)
        except ValueError:
            values[name.strip()] = text
    return values


def write_text(target: str | None, text: str) -> None:
    """Write to a file, to stdout for ``-``, or nowhere for None.

    Raises:
        BundleError: The file cannot be written.
    """
    from flash_export.files import write_file

    if target == STDOUT:
        click.echo(text, nl=False)
    elif target is not None:
        write_file(Path(target), text.encode())


def format_bytes(count: int) -> str:
    """Return a size with a binary unit, such as ``3.1 MiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
