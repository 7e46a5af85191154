"""The one way in which files are read: nothing in them is trusted, and what is wrong with them is told in one line.

A file is plain and no larger than its kind can be. JSON is strict: UTF-8, no field twice, no NaN, no number that 64
bits do not hold, not nested deeply; what it says is checked by the dataclass that it becomes.
"""

from __future__ import annotations

import json
import math
import os
import stat
from typing import TYPE_CHECKING, Any, NoReturn

from flash_export.errors import describe_reason
from flash_export.typed_json import build, name_type, show

if TYPE_CHECKING:
    from pathlib import Path
    from typing import TypeVar

    from flash_export.errors import FlashExportError

    T = TypeVar("T")

MAX_JSON_BYTES = 64 << 20
MAX_DEPTH = 32
_MAX_INTEGER = 2**63 - 1
_MAX_DIGITS = len(str(_MAX_INTEGER)) + 1


def read_record(path: Path, kind: type[T], error: type[FlashExportError], cure: str) -> T:
    """Read a JSON file as a frozen dataclass.

    Args:
        path: The file.
        kind: The dataclass; its fields are the schema.
        error: What is raised.
        cure: What a user can do about it; the end of the message.

    Raises:
        FlashExportError: ``error``: the file cannot be read, is no JSON object, or is no such record.
    """
    return build_record(path, read_json_object(path, error, cure), kind, error, cure)


def build_record(path: Path, values: object, kind: type[T], error: type[FlashExportError], cure: str) -> T:
    """Make a frozen dataclass of what a JSON file said; arguments and errors are those of :func:`read_record`."""
    try:
        return build(values, kind)
    except ValueError as mismatch:
        raise error(f"{path} is damaged: {mismatch}; {cure}") from mismatch


def read_json_object(path: Path, error: type[FlashExportError], cure: str) -> dict[str, Any]:
    """Read a JSON file whose fields depend on something else; arguments and errors are those of :func:`read_record`."""
    try:
        values = parse_json(read_bytes(path, error, cure, max_bytes=MAX_JSON_BYTES).decode("utf-8-sig"))
    except ValueError as mismatch:
        raise error(f"{path} cannot be read as JSON ({describe_reason(mismatch)}); {cure}") from mismatch
    if not isinstance(values, dict):
        raise error(f"{path} holds {name_type(type(values))}, not a JSON object; {cure}")
    return values


def read_bytes(path: Path, error: type[FlashExportError], cure: str, *, max_bytes: int) -> bytes:
    """Read a plain file of limited size; ``error`` and ``cure`` are those of :func:`read_record`."""
    size = check_plain_file(path, error, cure)
    if size > max_bytes:
        raise error(f"{path} has {size:,} bytes, more than the {max_bytes:,} that are read of such a file; {cure}")
    try:
        with path.open("rb") as stream:
            return stream.read(max_bytes)
    except OSError as failure:
        raise error(f"{path} cannot be read ({describe_reason(failure)}); {cure}") from failure


def check_plain_file(path: Path, error: type[FlashExportError], cure: str) -> int:
    """Return the size of a file in bytes; one that is no plain file is not opened, because a pipe would block.

    Raises:
        FlashExportError: ``error``: there is no such file, or it is a folder, a pipe, a socket or a device.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as failure:  # ValueError: a NUL in the name
        raise error(f"{path} cannot be read ({describe_reason(failure)}); {cure}") from failure
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{path} is no plain file; {cure}")
    return status.st_size


def parse_json(text: str) -> Any:
    """Parse strict JSON.

    Raises:
        ValueError: It is none, has a field twice, a number that is not finite or needs more than 64 bits, text that is
            no Unicode, or is nested deeper than 32 levels.
    """
    try:
        values = json.loads(
            text,
            object_pairs_hook=_build_object,
            parse_int=_parse_integer,
            parse_float=_parse_float,
            parse_constant=_refuse_number,
        )
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    _check_tree(values)
    return values


def _check_tree(values: object) -> None:
    waiting = [(values, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, str):
            _check_text(value)
        elif isinstance(value, dict):
            for name in value:
                _check_text(name)
            waiting.extend((item, depth + 1) for item in value.values())
        elif isinstance(value, list):
            waiting.extend((item, depth + 1) for item in value)


def _check_text(text: str) -> None:
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError(f"it has half a character in {show(text)}")


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the field {show(twice)} twice")
    return values


def _parse_integer(text: str) -> int:
    number = int(text) if len(text) <= _MAX_DIGITS else math.inf
    if not -_MAX_INTEGER <= number <= _MAX_INTEGER:
        _refuse_number(text)
    return int(number)


def _parse_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _refuse_number(text)
    return number


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"it has the number {show(text)[1:-1]}, which is none that can be used")
