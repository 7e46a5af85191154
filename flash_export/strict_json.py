"""Writing results as strict JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flash_export.printable import format_path


def format_json(values: object) -> str:
    """Return the text of a JSON file: dataclasses become objects, paths strings, and what is not finite ``null``.

    >>> format_json({"path": Path("a/b"), "error": math.nan})
    '{\\n  "path": "a/b",\\n  "error": null\\n}\\n'
    """
    return json.dumps(_make_strict(values), indent=2, allow_nan=False) + "\n"


def format_json_line(values: object) -> str:
    """Return the same in one line, for files of many."""
    return json.dumps(_make_strict(values), allow_nan=False) + "\n"


def _make_strict(values: Any) -> Any:
    if dataclasses.is_dataclass(values) and not isinstance(values, type):
        return {field.name: _make_strict(getattr(values, field.name)) for field in dataclasses.fields(values)}
    if isinstance(values, Mapping):
        return {name: _make_strict(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_make_strict(value) for value in values]
    if isinstance(values, Path):
        return format_path(values)
    return None if isinstance(values, float) and not math.isfinite(values) else values
