"""A report as GitHub-flavoured Markdown, short enough for the summary of a CI job."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from flash_export.printable import escape_unprintable
from flash_export.report.document import Explanations, Notes, Pairs, Styled, Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from flash_export.report.document import Block, Cell, Document, Note

SIGNS = {"passed": "✅", "failed": "❌", "skipped": "⚪"}
_NONE = "-"


def render_markdown(document: Document) -> str:
    """Return the report: what came out, what failed, the figures that matter, tables, and the rest folded away."""
    return "\n".join(_list_lines(document)) + "\n"


def escape(text: str) -> str:
    """Make text stand for itself in a line or in a cell of a table."""
    plain = html.escape(escape_unprintable(" ".join(text.split())), quote=False)
    return "".join(f"\\{character}" if character in "\\`*_[]|~#@$" else character for character in plain)


def build_table(headings: Sequence[str], rows: Iterable[Sequence[str]], align: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a table.

    Args:
        headings: One a column.
        rows: Cells, already escaped.
        align: ``left`` or ``right``, one a column.
    """
    yield f"| {' | '.join(headings)} |"
    yield f"|{'|'.join('---:' if one == 'right' else '---' for one in align)}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _list_lines(document: Document) -> Iterator[str]:
    sign = f"{SIGNS[document.status]} " if document.status in SIGNS else ""
    yield f"## {sign}{escape(document.headline or document.subject)}"
    counts = f": **{escape(document.counts)}**" if document.counts else ""
    yield from ("", f"{escape(document.subject)}{counts}.{f' {escape(document.lead)}' if document.lead else ''}")
    for sentence in (*document.alarms, *document.caveats):
        yield from ("", f"> **{escape(sentence)}**")
    if document.notes:
        yield from ("", *_list_notes(document.notes))
    if document.facts:
        yield ""
        for fact in document.facts:
            note = f", {escape(fact.note)}" if fact.note else ""
            yield f"- {escape(fact.label)}: **{escape(fact.value)}**{note}"
    yield from list_sections(document)
    if document.environment:
        yield from _fold("Environment", list(_list_block(document.environment_pairs)))


def list_sections(document: Document) -> Iterator[str]:
    """Yield the lines of the sections alone, for a page that has words of its own around them."""
    for section in document.list_sections("markdown"):
        lines = list(_list_block(section.block))
        if section.is_folded:
            yield from _fold(section.title, lines)
        else:
            yield from ("", f"### {escape(section.title)}") if section.title else ()
            yield from ("", *lines)


def _list_block(block: Block) -> Iterator[str]:
    if isinstance(block, Table):
        rows = [[*map(_format_cell, row.cells)] for row in block.rows]
        headings, align = zip(*((escape(one.title), one.align) for one in block.columns), strict=True)
        yield from build_table(headings, rows[: block.max_rows], align)
        if block.max_rows is not None and len(rows) > block.max_rows:
            yield from ("", f"and {len(rows) - block.max_rows} more")
        if remarks := [row for row in block.rows if row.remark]:
            yield from ("", *(f"- {_format_cell(row.cells[0])}: {escape(row.remark)}" for row in remarks))
    elif isinstance(block, Pairs):
        yield from build_table(("", ""), [[escape(name), escape(value)] for name, value in block.pairs], ("left",) * 2)
    elif isinstance(block, Notes):
        yield from _list_notes(block.notes)
    elif isinstance(block, Explanations):
        yield from (f"- **{escape(term)}**: {escape(meaning)}" for term, meaning in block.terms)


def _list_notes(notes: Iterable[Note]) -> Iterator[str]:
    for note in notes:
        sign = f"{SIGNS[note.style]} " if note.style in SIGNS else ""
        who = f"{escape(note.who)}{f' {note.style}' if note.style else ''}: " if note.who else ""
        where = f" ({escape(note.where)})" if note.where else ""
        command = f"; repeat it: `{escape_unprintable(note.command)}`" if note.command else ""
        yield f"- {sign}{who}{escape(note.text)}{where}{command}"


def _fold(title: str, lines: Sequence[str]) -> Iterator[str]:
    """Yield lines that a reader unfolds by a click on the title."""
    yield from ("", f"<details><summary>{escape(title)}</summary>", "", *lines, "", "</details>")


def _format_cell(cell: Cell) -> str:
    if cell is None:
        return _NONE
    if isinstance(cell, Styled):
        return f"{SIGNS[cell.style]} {escape(cell.text)}" if cell.style in SIGNS else escape(cell.text)
    return escape(cell)
