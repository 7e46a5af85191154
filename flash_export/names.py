"""Showing names that come out of files: any text at all, of any length."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_NAMES = 6
MAX_NAME_LENGTH = 80


def show_name(name: str) -> str:
    """Return a name on one line, with control characters escaped, and cut."""
    text = name if name.isprintable() else repr(name)[1:-1]
    return text if len(text) <= MAX_NAME_LENGTH else f"{text[:MAX_NAME_LENGTH]}..."


def list_names(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    shown = ", ".join(map(show_name, names[:MAX_NAMES]))
    more = len(names) - MAX_NAMES
    return f"{shown} and {more} more" if more > 0 else shown
