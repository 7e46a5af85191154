"""The same comparison in a terminal, in Markdown, in HTML and in JSON: nothing is left out, nothing is made up."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html import unescape
from typing import TYPE_CHECKING

from rich.console import Console

from flash_export.report.html import render_html
from flash_export.report.markdown import render_markdown
from flash_export.report.terminal import print_document
from flash_export.validators.trade_off.page import describe_trade_off
from tests.validators.trade_off.builders import FP8, FP32, FULL, INT8, make_trade_off, make_untimed

if TYPE_CHECKING:
    from flash_export.validators.trade_off.results import TradeOff


def render_trade_off(trade: TradeOff) -> str:
    return render_html(describe_trade_off(trade))


def render_trade_off_markdown(trade: TradeOff) -> str:
    return render_markdown(describe_trade_off(trade))


def print_text(trade: TradeOff, width: int = 80) -> str:
    stream = io.StringIO()
    print_document(describe_trade_off(trade), Console(file=stream, width=width))
    return stream.getvalue()


def list_rows(text: str) -> list[str]:
    """Return the lines without what aligns them."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_terminal_fits_80_columns_and_has_every_figure() -> None:
    text = print_text(FULL)
    for row in (
        "int8 int8 1.2 MiB 0.30 1.5040 +0.27% 98.7% 3.0e-04 30 MiB",
        "fp8 fp8 1.1 MiB 0.28 - - - - -",
        "512 tokens fp32 20 ms 19 to 21 ms 1.00 0.90 to 1.10",
        "int8 12 ms 11.4 to 12.6 ms 0.60 0.54 to 0.66",
        "decode step fp32 1 ms 0.95 to 1.05 ms 1.00 0.90 to 1.10",
    ):
        assert row in list_rows(text)
    said = "66,000 predictions on held-out text; the model itself in float64: 1.5000 bits per byte."
    assert said in " ".join(text.split())
    tables = [line for line in text.splitlines() if "predictions" not in line and "cannot be run" not in line]
    assert max(map(len, tables)) <= 80


def test_what_is_missing_is_named_once() -> None:
    for text in (print_text(FULL), render_trade_off_markdown(FULL)):
        assert text.count("it cannot be run here") == 1
    assert "fp8: it cannot be run here: no kernel of <float8> & co" in print_text(FULL)
    assert "Not measured" not in print_text(make_trade_off(FP32, INT8))


def test_front_is_named() -> None:
    text = print_text(FULL)
    assert "bits per byte, time of 2048 tokens: fp32, int8\n" in text
    assert "bits per byte, size of the graph: fp32, fp16, int8, int4\n" in text


def test_markdown_has_a_row_a_bundle_and_one_a_run_and_stands_for_itself() -> None:
    text = render_trade_off_markdown(FULL)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert ["fp8", "fp8", "1.1 MiB", "0.28", *["-"] * 5] in rows
    assert ["512 tokens", "fp32", "20 ms", "19 to 21 ms", "1.00", "0.90 to 1.10"] in rows
    assert ["", "int8", "48 ms", "45.6 to 50.4 ms", "0.60", "0.54 to 0.66"] in rows
    assert ["", "fp8", "-", "-", "-", "-"] in rows
    assert "&lt;float8&gt;" in text


def test_without_text_and_without_timing_there_are_no_such_columns() -> None:
    entries = [
        replace(make_untimed(entry), quality=replace(entry.quality, score=None, change=None)) for entry in (FP32, INT8)
    ]
    trade = make_trade_off(*entries, data="random tokens", reference_score=None, score=None)
    for text in (print_text(trade), render_trade_off_markdown(trade), render_trade_off(trade)):
        body = text.rpartition("<body>")[2].partition("How to read this")[0]
        assert "66,000 predictions on random tokens" in body
        assert [word for word in ("byte", "memory", "interval", "512") if word in body] == []
    assert "divergence, size of the graph: fp32, int8" in print_text(trade)


def test_page_needs_nothing_else_and_escapes() -> None:
    page = render_trade_off(FULL)
    assert not re.search(r"https?://|<script|<link|@import|url\(|src=", page)
    assert "prefers-color-scheme: dark" in page
    assert "<float8>" not in page
    assert page.count("<figure>") == 6
    text = unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))
    assert "What 5 bundles cost and lose" in text
    assert "fp8: it cannot be run here: no kernel of <float8> & co" in text
    assert "Not measured: fp8." in text


def test_json_is_strict_and_says_whether_it_is_complete() -> None:
    values = json.loads(FULL.to_json())
    assert values["complete"] is False
    assert values["entries"][4]["quality"]["reason"].startswith("it cannot be run here")
    assert values["entries"][2]["timings"][1]["ratio"] == {"median": 0.6, "low": 0.54, "high": 0.66}
    assert json.loads(make_trade_off(FP32, INT8).to_json())["complete"] is True


def test_reference_that_cannot_be_run_leaves_the_others_their_figures() -> None:
    bare = replace(INT8, quality=replace(INT8.quality, change=None))
    text = print_text(make_trade_off(FP8, bare))
    assert "int8 int8 1.2 MiB 0.30 1.5040 - 98.7% 3.0e-04 30 MiB" in list_rows(text)
    assert not make_trade_off(FP8, bare)
