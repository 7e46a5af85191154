"""What is printed for people: nothing in a name is ever read as markup, and every table looks alike."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from flash_export.printable import escape_unprintable

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


def prepare_streams() -> None:
    """Let stdout and stderr escape what their encoding lacks, such as all but ASCII with ``LANG=C``, and not fail."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def open_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Return a console that prints strings as they are: brackets are no markup, colons no emoji, numbers no colour."""
    from rich.console import Console

    return Console(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)


def make_text(*parts: str | tuple[str, str]) -> Text:
    """Return text for a console, of strings and of pairs of a string and its style."""
    from rich.text import Text

    pairs = (part if isinstance(part, tuple) else (part, "") for part in parts)
    return Text.assemble(*((escape_unprintable(text), style) for text, style in pairs))


def make_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    *,
    align: str,
    folded: Collection[int] = (),
) -> Table:
    """Return a table without lines.

    Args:
        headings: One a column.
        rows: Cells.
        align: Of the first columns: ``l`` for text, ``r`` for numbers; the others hold numbers.
        folded: Columns that may be broken where the terminal is narrow.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for index, heading in enumerate(headings):
        table.add_column(
            make_text(heading),
            justify="left" if align[index : index + 1] == "l" else "right",
            no_wrap=index not in folded,
            overflow="fold" if index in folded else "ellipsis",
        )
    for row in rows:
        table.add_row(*(make_text(cell) if isinstance(cell, str) else cell for cell in row))
    return table
