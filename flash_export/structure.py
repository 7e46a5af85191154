"""Checking that JSON has the shape of a frozen dataclass, before anything is made of it."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints


def find_mismatch(values: object, expected: Any, where: str = "") -> str | None:
    """Return what in JSON values contradicts a type, in words; None if nothing does.

    Args:
        values: Parsed JSON.
        expected: A dataclass, or what its fields are made of: ``str``, ``int``, ``float``, ``bool``,
            ``X | None``, ``Literal["a", "b"]``, ``tuple[X, ...]`` (a JSON list) and ``dict[str, X]``.
        where: Dotted path of ``values``, for the message.
    """
    origin = get_origin(expected)
    if dataclasses.is_dataclass(expected) and isinstance(values, Mapping):
        return _find_field_mismatch(values, expected, where)
    if origin is types.UnionType:
        mismatches = [find_mismatch(values, member, where) for member in get_args(expected)]
        return None if None in mismatches else mismatches[0]
    if origin is Literal:
        allowed = get_args(expected)
        return None if values in allowed else f"{where or 'it'} is {values!r}, wanted {' or '.join(map(str, allowed))}"
    if origin is tuple and isinstance(values, list):
        items = [(f"{where}[{index}]", value, get_args(expected)[0]) for index, value in enumerate(values)]
    elif origin is dict and isinstance(values, Mapping):
        items = [(f"{where}.{name}".lstrip("."), value, get_args(expected)[1]) for name, value in values.items()]
    elif expected in (str, int, float, bool, type(None)) and type(values) in (
        (int, float) if expected is float else (expected,)
    ):
        return None
    else:
        return f"{where or 'it'} is {type(values).__name__}, wanted {getattr(expected, '__name__', expected)}"
    return next((found for path, value, kind in items if (found := find_mismatch(value, kind, path))), None)


def _find_field_mismatch(values: Mapping[str, object], expected: Any, where: str) -> str | None:
    hints = get_type_hints(expected)
    for field in dataclasses.fields(expected):
        path = f"{where}.{field.name}".lstrip(".")
        if field.name in values:
            if found := find_mismatch(values[field.name], hints[field.name], path):
                return found
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            return f"{path} is missing"
    unknown = sorted(values.keys() - {field.name for field in dataclasses.fields(expected)})
    return f"{where or 'it'} has the unknown field {unknown[0]!r}" if unknown else None
