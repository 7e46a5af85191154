from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from flash_export.typed_json import build


@dataclass(frozen=True)
class Inner:
    sizes: tuple[int | str, ...]


@dataclass(frozen=True)
class Outer:
    name: str
    inner: dict[str, Inner]
    seconds: float = 0.0
    optional: Inner | None = None
    counts: dict[str, int] = field(default_factory=dict)
    status: Literal["good", "bad"] = "good"
    is_new: bool = False


GOOD: dict[str, Any] = {"name": "a", "inner": {"x": {"sizes": [1, "seq"]}}, "seconds": 1, "optional": None}


def test_what_a_dataclass_becomes_as_json_becomes_it_again() -> None:
    inner = {"x": Inner((1, "seq"))}
    assert build(GOOD, Outer) == Outer("a", inner, seconds=1)
    assert build({**GOOD, "seconds": 1.5, "optional": {"sizes": []}}, Outer) == Outer("a", inner, 1.5, Inner(()))
    assert build({"name": "a", "inner": {}}, Outer) == Outer("a", {})
    assert build({**GOOD, "status": "bad", "is_new": True}, Outer) == Outer("a", inner, 1, None, {}, "bad", True)
    every = Outer("b", inner, 0.5, Inner((2,)), {"n": 3}, "bad", True)
    assert build(json.loads(json.dumps(dataclasses.asdict(every))), Outer) == every


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": 3}, "name is a whole number, wanted text"),
        ({"name": None}, "name is null, wanted text"),
        ({"inner": []}, "inner is a list, wanted an object"),
        ({"inner": {"x": 1}}, "inner.x is a whole number, wanted an object"),
        ({"inner": {"x": {}}}, "inner.x.sizes is missing"),
        ({"inner": {"x": {"sizes": "12"}}}, "inner.x.sizes is text, wanted a list"),
        ({"inner": {"x": {"sizes": [1, 2.5]}}}, "inner.x.sizes[1] is a number, wanted a whole number"),
        ({"inner": {"x": {"sizes": [], "more": 1}}}, "inner.x has the unknown field 'more'"),
        ({"seconds": "1"}, "seconds is text, wanted a number"),
        ({"seconds": True}, "seconds is true or false, wanted a number"),
        ({"optional": 1}, "optional is a whole number, wanted an object"),
        ({"counts": {"a": True}}, "counts.a is true or false, wanted a whole number"),
        ({"status": "fine"}, "status is 'fine', wanted good or bad"),
        ({"status": ["good"]}, "status is ['good'], wanted good or bad"),
        ({"is_new": 1}, "is_new is a whole number, wanted true or false"),
        ({"more": 1}, "it has the unknown field 'more'"),
    ],
)
def test_mismatch_is_named_with_its_place(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build({**GOOD, **changed}, Outer)


def test_no_object_at_all() -> None:
    with pytest.raises(ValueError, match=r"^it is a list, wanted an object$"):
        build([1], Outer)


@dataclass(frozen=True)
class Positive:
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size}, wanted 1 or more")


@dataclass(frozen=True)
class Holder:
    parts: tuple[Positive, ...]


def test_what_a_dataclass_refuses_is_named_with_its_place() -> None:
    assert build({"parts": [{"size": 1}]}, Holder) == Holder((Positive(1),))
    with pytest.raises(ValueError, match=r"^parts\[1\]: size is 0, wanted 1 or more$"):
        build({"parts": [{"size": 1}, {"size": 0}]}, Holder)
    with pytest.raises(ValueError, match=r"^size is -1, wanted 1 or more$"):
        build({"size": -1}, Positive)


def test_long_names_and_values_are_cut() -> None:
    for changed in ({"x" * 100_000: 1}, {"inner": {"x" * 100_000: 1}}, {"status": "x" * 100_000}):
        with pytest.raises(ValueError, match="left out") as caught:
            build({**GOOD, **changed}, Outer)
        assert len(str(caught.value)) < 150
