"""How often each length is asked for: read from a file, or taken to be even over a range.

A file is JSON, an object of counts by length (``{"17": 120, "512": 8}``), or CSV with a head (``length,count``).
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flash_export.config import MAX_SEQ_LEN
from flash_export.errors import InputError
from flash_export.reading import MAX_JSON_BYTES, read_bytes, read_json_object
from flash_export.typed_json import show

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from jaxtyping import Float, Int

    from flash_export.bundle.manifest import AxisRange

_FORMS = 'write JSON such as {"17": 120, "512": 8}, or CSV with the head length,count and a line such as 17,120'
_CSV_HEAD = ["length", "count"]
_MAX_COUNT = 10**15  # sums of as many counts as a file can hold stay exact
_WHOLE_NUMBER = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True)
class LengthHistogram:
    """Lengths in rising order, and the share of requests that each has.

    Attributes:
        lengths: In units of the length axis.
        shares: They add up to 1.
        source: Where it comes from, for messages.
    """

    lengths: Int[np.ndarray, " n"]
    shares: Float[np.ndarray, " n"]
    source: str

    @property
    def mean(self) -> float:
        """Mean length of a request."""
        return float(self.lengths @ self.shares)

    def check_range(self, axis: AxisRange) -> None:
        """Look whether a graph takes all lengths.

        Raises:
            InputError: One lies outside of its range.
        """
        for length in (int(self.lengths[0]), int(self.lengths[-1])):
            if length not in axis:
                raise InputError(
                    f"{self.source} has the length {length}, the graph takes {axis.min} to {axis.max}; leave out what "
                    "lies outside, or export again with --max-seq-len"
                )


def read_histogram(path: Path) -> LengthHistogram:
    """Read a file of lengths and counts.

    Raises:
        InputError: It cannot be read, is of another form, has a length twice, or counts nothing.
    """
    pairs = _read_csv(path) if path.suffix.lower() == ".csv" else _read_json(path)
    counts: dict[int, int] = {}
    for length, count in pairs:
        if length in counts:
            raise InputError(f"{path} has the length {length} twice; add up its counts")
        counts[length] = count
    used = sorted(length for length, count in counts.items() if count)
    if not used:
        raise InputError(f"{path} counts no request; {_FORMS}")
    shares = np.array([counts[length] for length in used], np.float64)
    return LengthHistogram(np.array(used), shares / shares.sum(), str(path))


def parse_range(text: str) -> LengthHistogram:
    """Take every length of ``MIN:MAX`` to be as frequent as the others.

    Raises:
        InputError: The text is no such range.
    """
    match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= first <= last <= MAX_SEQ_LEN:
        raise InputError(f"range {show(text)} is no MIN:MAX of lengths from 1 to {MAX_SEQ_LEN}; write it like 1:512")
    lengths = np.arange(first, last + 1)
    return LengthHistogram(lengths, np.full(len(lengths), 1 / len(lengths)), f"range {text}")


def _read_json(path: Path) -> Iterable[tuple[int, int]]:
    for length, count in read_json_object(path, InputError, _FORMS).items():
        yield _parse(path, "length", length), _parse(path, f"count of {length}", count)


def _read_csv(path: Path) -> Iterable[tuple[int, int]]:
    try:
        text = read_bytes(path, InputError, _FORMS, max_bytes=MAX_JSON_BYTES).decode("utf-8-sig")
        rows = [row for row in csv.reader(text.splitlines(), strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV ({error}); {_FORMS}") from error
    if not rows or [name.strip() for name in rows[0]] != _CSV_HEAD:
        raise InputError(f"{path} has the head {show(','.join(rows[0]) if rows else '')}; {_FORMS}")
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != len(_CSV_HEAD):
            raise InputError(f"{path} has {len(row)} value(s) in row {line}; {_FORMS}")
        yield _parse(path, "length", row[0].strip()), _parse(path, f"count of {row[0].strip()}", row[1].strip())


def _parse(path: Path, name: str, value: object) -> int:
    """Return a length, which is at least 1, or a count, which may be 0."""
    is_number = type(value) is int or (isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value) is not None)
    number = int(str(value)) if is_number else -1
    if not (name == "length") <= number <= _MAX_COUNT:
        least = "1" if name == "length" else "0"
        raise InputError(f"{path} has {show(value)} as {name}, wanted a whole number from {least} on; {_FORMS}")
    return number
