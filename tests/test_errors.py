from __future__ import annotations

import pytest

from flash_export.errors import MAX_MESSAGE_CHARACTERS, BundleError, describe_reason, make_visible, shorten


def test_a_message_keeps_what_it_says() -> None:
    assert str(BundleError("größe=3 exceeds 2; use 2")) == "größe=3 exceeds 2; use 2"


def test_names_cannot_break_the_line_nor_drive_the_terminal() -> None:
    error = BundleError("a\nb\x1b[2J\u202e\udcff is no name")
    assert str(error) == r"a\nb\x1b[2J\u202e\udcff is no name"
    assert str(error).encode()


def test_a_long_message_is_cut_in_its_middle() -> None:
    message = str(BundleError(f"config has {'x' * 1_000_163}, wanted y; do z"))
    assert len(message) <= MAX_MESSAGE_CHARACTERS < 80 * 24
    assert message.startswith("config has xxx")
    assert message.endswith("xxx, wanted y; do z")
    assert " left out] " in message


@pytest.mark.parametrize("length", [40, 41, 42, 99, 1000, 123_456])
def test_what_is_left_out_is_counted(length: int) -> None:
    text = "ab" * (length // 2)
    short = shorten(text, 40)
    assert len(short) <= 40
    start, _, rest = short.partition(" [")
    count, _, end = rest.partition(" left out] ")
    assert len(start) + (int(count) + len(end) if rest else 0) == len(text)


def test_reasons_of_others_are_one_short_line() -> None:
    assert describe_reason(FileNotFoundError(2, "No such file or directory", "x")) == "No such file or directory"
    assert describe_reason(ValueError("two\n  lines")) == "two lines"
    assert describe_reason(KeyError()) == "KeyError"
    assert len(describe_reason(RuntimeError("x" * 10_000))) <= 300


def test_printable_text_is_as_it_was() -> None:
    assert make_visible("layers.0 [é] 漢字") == "layers.0 [é] 漢字"
