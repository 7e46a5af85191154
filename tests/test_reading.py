from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flash_export.errors import ConfigError, ReportError
from flash_export.reading import MAX_DEPTH, check_plain_file, parse_json, read_bytes, read_json_object, read_record

if TYPE_CHECKING:
    from pathlib import Path

CURE = "write it again"


@dataclass(frozen=True)
class Settings:
    sizes: tuple[int, ...]
    name: str = "a"

    def __post_init__(self) -> None:
        if not self.sizes:
            raise ValueError("sizes is empty")


def write(folder: Path, content: bytes | str) -> Path:
    path = folder / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


def test_a_record_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeff{"sizes": [1, 2], "name": "größe"}')
    assert read_record(path, Settings, ConfigError, CURE) == Settings((1, 2), "größe")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read as JSON (Expecting value: line 1 column 1 (char 0)); write it again"),
        (b"\xff\xfe{}", "cannot be read as JSON ('utf-8' codec can't decode byte 0xff"),
        ("[" * 100_000, "cannot be read as JSON (it is nested deeper than 32 levels)"),
        ('{"a":' * 40 + "1" + "}" * 40, "cannot be read as JSON (it is nested deeper than 32 levels)"),
        ('{"sizes": [1], "sizes": [2]}', "cannot be read as JSON (it has the field 'sizes' twice)"),
        ('{"sizes": [NaN]}', "cannot be read as JSON (it has the number NaN"),
        ('{"sizes": [-Infinity]}', "cannot be read as JSON (it has the number -Infinity"),
        ('{"sizes": [1e999]}', "cannot be read as JSON (it has the number 1e999"),
        ('{"sizes": [9223372036854775808]}', "cannot be read as JSON (it has the number 9223372036854775808"),
        (f'{{"sizes": [{"9" * 5000}]}}', "cannot be read as JSON (it has the number 999999999"),
        ('{"name": "\\ud800"}', "cannot be read as JSON (it has half a character in '\\ud800')"),
        ('{"\\ud800": 1}', "cannot be read as JSON (it has half a character in '\\ud800')"),
        ("[]", "holds a list, not a JSON object; write it again"),
        ("{}", "is damaged: sizes is missing; write it again"),
        ('{"sizes": []}', "is damaged: sizes is empty; write it again"),
    ],
)
def test_what_is_wrong_is_one_line_of_the_right_error(tmp_path: Path, content: bytes | str, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ReportError) as caught:
        read_record(path, Settings, ReportError, CURE)
    assert str(caught.value).startswith(f"{path} {message}")
    assert str(caught.value).endswith(f"; {CURE}")
    assert len(str(caught.value)) < 500


def test_the_deepest_that_is_read_and_the_largest_numbers() -> None:
    deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert parse_json(deepest) == json.loads(deepest)
    assert parse_json("[9223372036854775807, -9223372036854775807, 1e308]") == [2**63 - 1, 1 - 2**63, 1e308]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(1 - 2**63, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


@settings(deadline=None)
@given(VALUES)
def test_what_python_writes_is_read(values: Any) -> None:
    assert parse_json(json.dumps(values, allow_nan=False)) == values


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, b"x" * 11)
    assert read_bytes(path, ConfigError, CURE, max_bytes=11) == b"x" * 11
    with pytest.raises(ConfigError, match=r"a\.json has 11 bytes, more than the 10 that are read .*; write it again"):
        read_bytes(path, ConfigError, CURE, max_bytes=10)


def test_what_is_no_plain_file_is_not_opened(tmp_path: Path) -> None:
    """Opening the pipe would block, since nobody writes to it."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        for path in (tmp_path, tmp_path / "pipe", tmp_path / "socket"):
            with pytest.raises(ConfigError, match="is no plain file; write it again"):
                read_json_object(path, ConfigError, CURE)


@pytest.mark.parametrize(
    ("name", "reason"), [("none", "No such file"), ("a\0b", "null"), ("x" * 5000, "name too long"), ("a/b", "No such")]
)
def test_a_path_that_cannot_be(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"cannot be read \(.*{reason}.*; write it again") as caught:
        check_plain_file(tmp_path / name, ConfigError, CURE)
    assert str(caught.value).isprintable()
