from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from flash_export.printable import encode_text, escape_unprintable, format_path


@given(st.text(st.characters()))
def test_any_text_can_be_written_and_steers_no_terminal(text: str) -> None:
    shown = encode_text(text).decode()
    assert not any(character < " " and character not in "\t\n" for character in shown)
    assert not any("\x7f" <= character <= "\x9f" for character in shown)
    assert escape_unprintable(shown) == shown


def test_text_that_can_be_shown_stays() -> None:
    text = "é 字 🙂 [/red] |`*\n\t\N{RIGHT-TO-LEFT MARK}"
    assert escape_unprintable(text) == text


def test_bytes_that_are_no_utf8_are_named() -> None:
    assert format_path(os.fsdecode(b"a\xff\xc3\xa9")) == "a\\xffé"
    assert escape_unprintable("\ud800\x1b\x9b") == "\\ud800\\x1b\\x9b"
