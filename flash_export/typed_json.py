"""Making frozen dataclasses of JSON: the types of the fields are the schema, ``__post_init__`` says what else holds."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from flash_export.errors import shorten
from flash_export.suggest import suggest

if TYPE_CHECKING:
    from typing import TypeVar

    T = TypeVar("T")

_SHOWN_CHARACTERS = 60
_NAMES: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
    list: "a list",
    tuple: "a list",
}
_get_hints = functools.cache(get_type_hints)


def build(values: object, expected: type[T], where: str = "") -> T:
    """Make a frozen dataclass of what JSON says.

    Its fields may be ``str``, ``int``, ``float``, ``bool``, ``X | None``, ``Literal["a", "b"]``, ``tuple[X, ...]`` (a
    JSON list), ``dict[str, X]``, ``Any`` for all that JSON says, and further dataclasses. Those of a union are told
    apart by a literal ``kind``.
    ``__post_init__`` may refuse values with a ValueError.

    Args:
        values: Parsed JSON.
        expected: The dataclass.
        where: Dotted path of ``values``, for the message.

    Raises:
        ValueError: What contradicts the dataclass, in words that begin with its place.
    """
    built: T = _build(values, expected, where)
    return built


def _build(values: object, expected: Any, where: str) -> Any:
    origin = get_origin(expected)
    if expected is Any:
        return values
    if dataclasses.is_dataclass(expected) and isinstance(values, Mapping):
        return _build_dataclass(values, expected, where)
    if origin is types.UnionType:
        return _build_union(values, get_args(expected), where)
    if origin is Literal:
        allowed = get_args(expected)
        if values in allowed:
            return values
        raise ValueError(f"{where or 'it'} is {show(values)}, wanted {' or '.join(map(str, allowed))}")
    if origin is tuple and isinstance(values, list):
        kind = get_args(expected)[0]
        return tuple(_build(value, kind, f"{where}[{index}]") for index, value in enumerate(values))
    if origin is dict and isinstance(values, Mapping):
        kind = get_args(expected)[1]
        return {name: _build(value, kind, _join(where, name)) for name, value in values.items()}
    kinds = (int, float) if expected is float else (expected,)
    if expected in (str, int, float, bool, type(None)) and type(values) in kinds:
        return values
    raise ValueError(f"{where or 'it'} is {name_type(type(values))}, wanted {name_type(origin or expected)}")


def _build_union(values: object, members: tuple[Any, ...], where: str) -> Any:
    if values is None and type(None) in members:
        return None
    if type(values) in members:  # of plain values
        return values
    if isinstance(values, Mapping) and "kind" in values:
        tagged = {get_args(get_type_hints(one)["kind"])[0]: one for one in members if dataclasses.is_dataclass(one)}
        if not isinstance(values["kind"], str) or values["kind"] not in tagged:
            raise ValueError(f"{_join(where, 'kind')} is {show(values['kind'])}, wanted {' or '.join(tagged)}")
        return _build(values, tagged[values["kind"]], where)
    return _build(values, members[0], where)


def _build_dataclass(values: Mapping[str, object], expected: Any, where: str) -> Any:
    hints, fields = _get_hints(expected), dataclasses.fields(expected)
    required = [
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    built = {}
    for field in fields:
        if field.name in values:
            built[field.name] = _build(values[field.name], hints[field.name], _join(where, field.name))
        elif field.name in required:
            raise ValueError(f"{_join(where, field.name)} is missing")
    if unknown := sorted(values.keys() - {field.name for field in fields}):
        meant = suggest(unknown[0], [field.name for field in fields if field.name not in values])
        raise ValueError(f"{where or 'it'} has the unknown field {show(unknown[0])}{meant}")
    try:
        return expected(**built)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from error


def name_type(kind: Any) -> str:
    """Return what JSON, and so a message, calls a type; mappings and dataclasses are objects."""
    return _NAMES.get(kind, "an object")


def _join(where: str, name: str) -> str:
    return f"{where}.{shorten(name, _SHOWN_CHARACTERS)}".lstrip(".")


def show(value: object) -> str:
    """Return a value as a message shows it: of a long one, its ends."""
    return shorten(repr(value), _SHOWN_CHARACTERS)
