"""The JSON Schemas that are shipped are those of the results, and every command's JSON follows its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import jsonschema
import pytest

from flash_export.cli.main import main
from flash_export.cli.schemas import FOLDER, VALIDATE, format_schema, make_schemas
from flash_export.schema import make_schema

# Commands whose JSON is that of another one.
SHARED = {"onnx": "inspect"}
# What a command answers in another use of it.
SECOND = {"generate-prompts"}


def test_every_command_has_one_and_no_other_is_there() -> None:
    names = {SHARED.get(name, name) for name in main.commands}
    shipped = {path.name.removesuffix(".schema.json") for path in FOLDER.iterdir()}
    assert shipped == names | SECOND == {*make_schemas(), VALIDATE}


@pytest.mark.parametrize("name", sorted(make_schemas()))
def test_shipped_schema_is_that_of_the_result(name: str) -> None:
    path, made = FOLDER / f"{name}.schema.json", make_schemas()[name]
    jsonschema.Draft202012Validator.check_schema(made)
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(format_schema(made))
    assert path.read_text() == format_schema(made), "a result changed; if it should, set UPDATE_SNAPSHOTS=1"


@dataclass(frozen=True)
class Leaf:
    """A leaf."""

    size: float
    pair: tuple[int, str | None]


@dataclass(frozen=True)
class Tree:
    """A tree.

    With more to say.
    """

    leaves: tuple[Leaf, ...]
    names: dict[str, int]
    kind: Any


GOOD: dict[str, Any] = {"leaves": [{"size": 1.5, "pair": [1, None]}], "names": {"a": 1}, "kind": [], "ok": True}


@pytest.mark.parametrize(
    "changes",
    [
        {"leaves": {}},
        {"leaves": [{"size": "1", "pair": [1, None]}]},
        {"leaves": [{"size": 1, "pair": [1]}]},
        {"leaves": [{"size": 1, "pair": [1, 2]}]},
        {"names": {"a": "b"}},
        {"ok": 1},
        {"more": 1},
    ],
)
def test_schema_refuses_what_the_types_do_not_hold(changes: dict[str, Any]) -> None:
    schema = make_schema("tree", Tree, {"ok": bool})
    assert schema["description"] == "A tree."
    jsonschema.validate(GOOD, schema)
    jsonschema.validate({**GOOD, "leaves": [{"size": None, "pair": [1, "a"]}]}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**GOOD, **changes}, schema)


def test_type_without_a_place_is_refused() -> None:
    @dataclass(frozen=True)
    class Odd:
        """It has a set."""

        values: set[int]

    Odd.__annotations__["values"] = set[int]
    with pytest.raises(TypeError, match="has no place in a result"):
        make_schema("odd", Odd)
