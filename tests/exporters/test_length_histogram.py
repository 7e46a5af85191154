from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

from flash_export.bundle.manifest import AxisRange
from flash_export.errors import InputError
from flash_export.exporters.length_histogram import parse_range, read_histogram

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lengths.json", '{"512": 1, "17": 3, "600": 0}'),
        ("lengths.csv", "length,count\n512,1\n\n17, 3\n600,0\n"),
        ("lengths.CSV", "\ufefflength,count\r\n512,1\r\n17,3\r\n"),
    ],
)
def test_a_file_is_read(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    histogram = read_histogram(path)
    assert histogram.lengths.tolist() == [17, 512]
    assert histogram.shares.tolist() == [0.75, 0.25]
    assert histogram.mean == 0.75 * 17 + 0.25 * 512
    assert histogram.source == str(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.json", "[1, 2]", "holds a list, not a JSON object"),
        ("l.json", '{"17": "many"}', "has 'many' as count of 17, wanted a whole number from 0 on"),
        ("l.json", '{"17": -1}', "has -1 as count of 17"),
        ("l.json", '{"17": 1.5}', "has 1.5 as count of 17"),
        ("l.json", '{"17": true}', "has True as count of 17"),
        ("l.json", '{"0": 1}', "has '0' as length, wanted a whole number from 1 on"),
        ("l.json", '{"-3": 1}', "has '-3' as length"),
        ("l.json", '{"17": 1, "017": 2}', "has the length 17 twice; add up its counts"),
        ("l.json", "{}", "counts no request"),
        ("l.json", '{"17": 0}', "counts no request"),
        ("l.csv", "", "has the head ''"),
        ("l.csv", "17,3\n", "has the head '17,3'"),
        ("l.csv", "length,count\n17\n", "has 1 value(s) in row 2"),
        ("l.csv", "length,count\n17,1e3\n", "has '1e3' as count of 17"),
        ("l.csv", 'length,count\n"17,3\n', "cannot be read as CSV"),
        ("l.csv", "length,count\n17,3\n17,4\n", "has the length 17 twice"),
        ("l.csv", "length,count\n" + "9" * 40 + ",1\n", "as length, wanted a whole number"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        read_histogram(path)


def test_a_missing_file_and_one_of_bytes_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read .*write JSON such as"):
        read_histogram(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"cannot be read as CSV"):
        read_histogram(tmp_path / "bytes.csv")


def test_a_range_has_every_length_as_often() -> None:
    histogram = parse_range("3:6")
    assert histogram.lengths.tolist() == [3, 4, 5, 6]
    np.testing.assert_allclose(histogram.shares, 0.25)


@pytest.mark.parametrize("text", ["", "5", "6:5", "0:5", "1:2:3", "-1:4", "1:99999999", "a:b", "1:5\n"])
def test_a_text_that_is_no_range_is_an_error(text: str) -> None:
    with pytest.raises(InputError, match=r"is no MIN:MAX of lengths from 1 to 16777216; write it like 1:512"):
        parse_range(text)


@pytest.mark.parametrize(("text", "length"), [("1:9", 1), ("4:11", 11)])
def test_a_length_that_the_graph_does_not_take_is_named(text: str, length: int) -> None:
    histogram = parse_range(text)
    with pytest.raises(InputError, match=f"has the length {length}, the graph takes 2 to 10; leave out"):
        histogram.check_range(AxisRange(2, 10))
    histogram.check_range(AxisRange(1, 11))
