"""A report in a terminal: tables that fit its width, what failed, the figures that matter, last of all the verdict."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from flash_export.report.document import Explanations, Notes, Pairs, Styled, Table
from flash_export.terminal import make_table, make_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console
    from rich.text import Text

    from flash_export.report.document import Block, Cell, Column, Document, Note

STYLES = {"": "", "passed": "green", "failed": "bold red", "skipped": "yellow", "soft": "dim"}
NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"
_NONE = "-"
_LABEL_WIDTH = 10
_PROSE_WIDTH = 20  # a column of prose is not made narrower than this to keep others


def print_document(document: Document, console: Console) -> None:
    """Print a report: what it is about first, what came out last."""
    console.print(make_text((document.subject, "bold")), soft_wrap=True)
    if document.lead:
        console.print(make_text(document.lead))
    for section in document.list_sections("terminal"):
        if section.title:
            console.print(make_text("\n", (section.title, "bold")), soft_wrap=True)
        _print_block(section.block, console)
    if document.notes or document.facts or document.caveats or document.alarms or document.word:
        console.print()
    _print_notes(document.notes, console)
    for fact in document.facts:
        console.print(make_text(f"{fact.label}: {fact.value}{', ' if fact.note else ''}{fact.note}"))
    for caveat in document.caveats:
        console.print(make_text((caveat, "yellow")))
    for alarm in document.alarms:
        console.print(make_text((alarm, "bold red")))
    if document.headline and document.counts:
        console.print(make_text(document.headline))
    if document.word:
        style = f"bold {STYLES[document.status]}"
        console.print(make_text((document.word, style), f"  {document.counts or document.headline}"), soft_wrap=True)


def _print_block(block: Block, console: Console) -> None:
    if isinstance(block, Table):
        _print_table(block, console)
    elif isinstance(block, Pairs):
        for label, value in block.pairs:
            for line in wrap_pair(label, value, console.width):
                console.print(make_text(line), soft_wrap=True)
    elif isinstance(block, Notes):
        _print_notes(block.notes, console)
    elif isinstance(block, Explanations):
        for term, meaning in block.terms:
            console.print(make_text((term, "bold"), f": {meaning}"))


def _print_table(table: Table, console: Console) -> None:
    rows = table.rows[: table.max_rows]
    texts = [[_make_text(cell) for cell in row.cells] for row in rows]
    titles = _fit_titles(table.columns, texts, console.width)
    kept = [index for index, title in enumerate(titles) if title is not None]
    console.print(
        make_table(
            [titles[index] or "" for index in kept],
            [[line[index] for index in kept] for line in texts],
            align="".join(table.columns[index].align[0] for index in kept),
            folded=[place for place, index in enumerate(kept) if table.columns[index].is_prose],
        )
    )
    if hidden := len(table.rows) - len(rows):
        console.print(make_text(f"and {hidden} more"))
    for row in rows:
        if row.remark:
            console.print(make_text((f"  {_read(row.cells[0])}: {row.remark}", "dim")), soft_wrap=True)


def _fit_titles(columns: tuple[Column, ...], lines: list[list[Text]], width: int) -> list[str | None]:
    """Return the headings of a table that has to fit a width; None for a column that is left out.

    If there is too little room, columns that matter less are left out, from the right; if that is not enough, headings
    are broken between their words.
    """
    cells = [max((line[index].cell_len for line in lines), default=0) for index in range(len(columns))]
    cells = [min(one, _PROSE_WIDTH) if column.is_prose else one for one, column in zip(cells, columns, strict=True)]
    titles: list[str | None] = [column.title for column in columns]

    def fits() -> bool:
        widths = [
            max(cell, *map(len, title.split("\n")))
            for cell, title in zip(cells, titles, strict=True)
            if title is not None
        ]
        return sum(widths) + len(widths) - 1 <= width

    for index in reversed(range(len(columns))):
        if not fits() and columns[index].is_minor:
            titles[index] = None
    if not fits():
        titles = [title and _break_title(title, cell) for title, cell in zip(titles, cells, strict=True)]
    return titles


def _break_title(title: str, width: int) -> str:
    return "\n".join(textwrap.wrap(title, max([width, *map(len, title.split())])))


def _print_notes(notes: Iterable[Note], console: Console) -> None:
    for note in notes:
        start: list[str | tuple[str, str]] = [(note.style, STYLES[note.style]), " "] if note.style else []
        start += [f"{note.who}: "] if note.who else []
        where = [(f" ({note.where})", "dim")] if note.where else []
        console.print(make_text(*start, note.text, *where), soft_wrap=True)
        if note.command:
            console.print(make_text(("  repeat it: ", "dim"), note.command), soft_wrap=True)


def wrap_pair(label: str, value: str, width: int) -> list[str]:
    """Return the lines of a label and its value; a value that is too long for the terminal goes on below itself.

    No line ends at a no-break space, which is shown as a plain one.
    """
    start = f"  {label:<{_LABEL_WIDTH - 1}} "
    lines = textwrap.wrap(
        value,
        width,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(NO_BREAK_SPACE, " ") for line in lines]


def _make_text(cell: Cell) -> Text:
    if cell is None:
        return make_text((_NONE, "dim"))
    return make_text((cell.text, STYLES[cell.style]) if isinstance(cell, Styled) else cell)


def _read(cell: Cell) -> str:
    return _NONE if cell is None else cell.text if isinstance(cell, Styled) else cell
