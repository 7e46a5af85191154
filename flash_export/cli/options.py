"""Parsing that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from flash_export.errors import ConfigError

STDOUT = "-"


def parse_config(config_file: str | None, assignments: tuple[str, ...]) -> dict[str, Any] | None:
    """Merge ``--config FILE`` and ``--set NAME=VALUE``; None if neither was given.

    Values of ``--set`` are JSON (``true``, ``256``, ``1.5``), or else plain text.

    Raises:
        ConfigError: The file is no JSON object, or an assignment has no ``=``.
    """
    if config_file is None and not assignments:
        return None
    values = _read_json_object(Path(config_file)) if config_file is not None else {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set {assignment!r} has no name and value; write --set causal=true")
        try:
            values[name.strip()] = json.loads(text)
        except (ValueError, RecursionError):
            values[name.strip()] = text
    return values


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"--config {path} cannot be read as JSON ({reason}); give a file with a JSON object"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path} holds {type(values).__name__}; give a file with a JSON object")
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
