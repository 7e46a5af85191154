"""The fields of a protobuf message, without parsing what is in them.

A message is a row of fields, each a tag, mostly the length of its content, and the content
(https://protobuf.dev/programming-guides/encoding), so that what is not wanted can be stepped over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator

VARINT, FIXED_64, LENGTH_DELIMITED, FIXED_32 = 0, 1, 2, 5  # wire types
FIXED_SIZES = {FIXED_64: 8, FIXED_32: 4}
MAX_VARINT_BYTES = 10


@dataclass(frozen=True)
class Field:
    """Where a field of a message stands in the file.

    Attributes:
        tag: ``(field number << 3) | wire type``.
        start: Of the tag.
        content: Where the content starts.
        stop: Where the next field starts.
    """

    tag: int
    start: int
    content: int
    stop: int


def list_fields(data: mmap.mmap | bytes, start: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message in ``data[start:end]``.

    Raises:
        ValueError: It is no protobuf message.
    """
    while start < end:
        tag, content = _read_varint(data, start)
        wire_type = tag & 7
        if wire_type == LENGTH_DELIMITED:
            size, content = _read_varint(data, content)
            stop = content + size
        elif wire_type == VARINT:
            stop = _read_varint(data, content)[1]
        elif wire_type in FIXED_SIZES:
            stop = content + FIXED_SIZES[wire_type]
        else:
            raise ValueError(f"wire type {wire_type} at byte {start}")
        if stop > end:
            raise ValueError(f"the field at byte {start} ends at byte {stop}, after its message")
        yield Field(tag, start, content, stop)
        start = stop


def _read_varint(data: mmap.mmap | bytes, start: int) -> tuple[int, int]:
    """Return a number and where it ends: seven bits per byte, lowest first, the high bit set on all but the last."""
    number = 0
    for index, byte in enumerate(data[start : start + MAX_VARINT_BYTES]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number, start + index + 1
    raise ValueError(f"no number at byte {start}")
