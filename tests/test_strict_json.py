from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from flash_export.strict_json import format_json


@dataclass(frozen=True)
class Inner:
    path: Path
    values: tuple[float, ...]


def test_dataclasses_paths_and_what_is_not_finite() -> None:
    values = {"inner": Inner(Path("a"), (1.5, math.inf, -math.inf, math.nan)), "none": None, "flag": True}
    text = format_json(values)
    assert json.loads(text, parse_constant=pytest.fail) == {
        "inner": {"path": "a", "values": [1.5, None, None, None]},
        "none": None,
        "flag": True,
    }
    assert text.endswith("}\n")
