"""Text that people see: names of files, models and graphs may hold what no terminal, page or JSON reader can show."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# Control characters but tab and line feed, which could steer a terminal, and surrogates, which no encoding has: Python
# has them where the name of a file is no UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# A byte that is no UTF-8 is the character of 0xdc00 plus the byte (PEP 383).
_FIRST_BYTE, _LAST_BYTE, _BYTE_OFFSET = 0xDC80, 0xDCFF, 0xDC00


def escape_unprintable(text: str) -> str:
    r"""Return the text with an escape in place of each character that cannot be shown.

    >>> escape_unprintable("a\x1b[31m\udcff\ud800\tb")
    'a\\x1b[31m\\xff\\ud800\tb'
    """
    return _UNPRINTABLE.sub(lambda match: _escape(ord(match[0])), text)


def format_path(path: str | Path) -> str:
    """Return a path as it is shown: what is no UTF-8 in it is escaped."""
    return escape_unprintable(str(path))


def encode_text(text: str) -> bytes:
    """Return UTF-8 of text that is written into a file for people."""
    return escape_unprintable(text).encode()


def _escape(code: int) -> str:
    if _FIRST_BYTE <= code <= _LAST_BYTE:
        code -= _BYTE_OFFSET
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"
