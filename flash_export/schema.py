"""JSON Schemas of results, read off the types of their dataclasses, so that they cannot say anything else."""

from __future__ import annotations

import dataclasses
import inspect
import types
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Mapping

DIALECT = "https://json-schema.org/draft/2020-12/schema"
# A float that is not finite is null in strict JSON.
_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    Path: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": ["number", "null"]},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
}


@dataclasses.dataclass(frozen=True)
class _Known:
    """What annotations name, and the objects described so far."""

    names: Mapping[str, Any]
    objects: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


def make_schema(
    title: str, kind: type, extra: Mapping[str, Any] | None = None, names: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the JSON Schema of a result.

    Args:
        title: What it is of.
        kind: The dataclass.
        extra: Types of the keys that the JSON has beside its fields, or in place of those of the same name.
        names: What its annotations name and its module imports for types alone.
    """
    known = _Known(names or {})
    fields = _list_fields(kind, known)
    hints = {**(extra or {}), **{name: hint for name, hint in fields.items() if name not in (extra or {})}}
    schema = {"$schema": DIALECT, "title": title, **_describe_object(kind, hints, known)}
    return {**schema, "$defs": dict(sorted(known.objects.items()))} if known.objects else schema


def _list_fields(kind: type, known: _Known) -> dict[str, Any]:
    hints = get_type_hints(kind, localns=dict(known.names))
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _describe_object(kind: type, hints: Mapping[str, Any], known: _Known) -> dict[str, Any]:
    return {
        "description": (inspect.getdoc(kind) or "").partition("\n")[0],
        "type": "object",
        "properties": {name: _describe(hint, known) for name, hint in hints.items()},
        "required": list(hints),
        "additionalProperties": False,
    }


def _describe(hint: Any, known: _Known) -> dict[str, Any]:
    if hint in _PLAIN:
        return _PLAIN[hint]
    origin, members = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_describe(member, known) for member in members]}
    if origin is Literal:
        return {"enum": list(members)}
    if origin is tuple and members[-1] is not Ellipsis:
        items = [_describe(member, known) for member in members]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if origin is tuple:
        return {"type": "array", "items": _describe(members[0], known)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _describe(members[1], known)}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [member.value for member in hint]}
    if hint is Any:
        return {}
    if not dataclasses.is_dataclass(hint):
        raise TypeError(f"{hint} has no place in a result; use what this function knows, or teach it")
    assert isinstance(hint, type)
    if hint.__name__ not in known.objects:
        known.objects[hint.__name__] = {}  # it may hold itself
        known.objects[hint.__name__] = _describe_object(hint, _list_fields(hint, known), known)
    return {"$ref": f"#/$defs/{hint.__name__}"}
