from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

from flash_export.terminal import make_table, make_text, open_console, prepare_streams

if TYPE_CHECKING:
    import pytest


def test_console_prints_strings_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    open_console(stderr=True).print("x[/red]y [bold]1[/bold] :smile:")
    assert stream.getvalue() == "x[/red]y [bold]1[/bold] :smile:\n"


def test_text_has_styles_and_no_control_characters() -> None:
    text = make_text(("a[b]", "bold"), "\x1b[31m")
    assert text.plain == "a[b]\\x1b[31m"
    assert [(span.start, span.end, span.style) for span in text.spans] == [(0, 4, "bold")]


def test_table_aligns_text_left_and_numbers_right() -> None:
    table = make_table(["[i]", "n", "text"], [["[/b]", "1", make_text("x")]], align="lrl", folded=(2,))
    assert [column.justify for column in table.columns] == ["left", "right", "left"]
    assert [column.no_wrap for column in table.columns] == [True, True, False]
    stream = io.StringIO()
    from rich.console import Console

    Console(file=stream, width=80).print(table)
    assert [line.split() for line in stream.getvalue().splitlines()] == [["[i]", "n", "text"], ["[/b]", "1", "x"]]


def test_streams_escape_what_their_encoding_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # has no encoding to fail at
    prepare_streams()
    print("é\udcff", flush=True)
    assert raw.getvalue() == b"\\xe9\\udcff\n"
