"""Bars on a page: a piece for each name, as long as it is beside the longest bar."""

from __future__ import annotations

import re

import pytest

from flash_export.report.document import Bar, Bars, Document, Plots, Section
from flash_export.report.html import render_html

NAMES = (("work & more", "s0"), ("rest", "s1"))


def render(*bars: Bar) -> str:
    section = Section("", Plots((Bars("Title <1>", "caption", NAMES, bars),)), views=("page",))
    return render_html(Document("subject", "command", sections=(section,)))


def test_pieces_share_the_width_of_the_longest_bar() -> None:
    page = render(Bar("a", (30, 10), "40 in all"), Bar("b", (0, 20), "20"))
    pieces = re.findall(r'class="piece (s\d)" style="width:([\d.]+)%" title="([^"]+)"', page)
    assert pieces == [("s0", "75.0", "work &amp; more"), ("s1", "25.0", "rest"), ("s1", "50.0", "rest")]
    assert "Title &lt;1&gt;" in page
    assert "40 in all" in page


def test_bars_of_nothing_are_drawn() -> None:
    assert "width" not in render(Bar("a", (0, 0), "0")).partition("<body>")[2]


def test_bar_has_a_piece_for_every_name() -> None:
    with pytest.raises(ValueError, match="the bar 'a' has 1 pieces, there are 2 names"):
        Bars("title", "caption", NAMES, (Bar("a", (1,), "1"),))
