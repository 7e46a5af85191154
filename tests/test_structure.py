from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from flash_export.structure import find_mismatch


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


def test_what_a_dataclass_becomes_as_json_fits() -> None:
    assert find_mismatch(GOOD, Outer) is None
    assert find_mismatch({**GOOD, "seconds": 1.5, "optional": {"sizes": []}}, Outer) is None
    assert find_mismatch({"name": "a", "inner": {}}, Outer) is None
    assert find_mismatch({**GOOD, "status": "bad", "is_new": True}, Outer) is None
    plain = {"inner": {}, "seconds": 0.0, "counts": {}, "status": "good", "is_new": False}
    assert dataclasses.asdict(Outer("a", {})) == {**GOOD, **plain}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": 3}, "name is int, wanted str"),
        ({"name": None}, "name is NoneType, wanted str"),
        ({"inner": []}, "inner is list, wanted dict"),
        ({"inner": {"x": 1}}, "inner.x is int, wanted Inner"),
        ({"inner": {"x": {}}}, "inner.x.sizes is missing"),
        ({"inner": {"x": {"sizes": "12"}}}, "inner.x.sizes is str, wanted tuple"),
        ({"inner": {"x": {"sizes": [1, 2.5]}}}, "inner.x.sizes[1] is float, wanted int"),
        ({"inner": {"x": {"sizes": [], "more": 1}}}, "inner.x has the unknown field 'more'"),
        ({"seconds": "1"}, "seconds is str, wanted float"),
        ({"seconds": True}, "seconds is bool, wanted float"),
        ({"optional": 1}, "optional is int, wanted Inner"),
        ({"counts": {"a": True}}, "counts.a is bool, wanted int"),
        ({"status": "fine"}, "status is 'fine', wanted good or bad"),
        ({"status": ["good"]}, "status is ['good'], wanted good or bad"),
        ({"is_new": 1}, "is_new is int, wanted bool"),
        ({"more": 1}, "it has the unknown field 'more'"),
    ],
)
def test_mismatch_is_named_with_its_place(changed: dict[str, Any], message: str) -> None:
    assert find_mismatch({**GOOD, **changed}, Outer) == message


def test_no_object_at_all() -> None:
    assert find_mismatch([1], Outer) == "it is list, wanted Outer"
