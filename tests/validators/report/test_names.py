"""Names as nobody gives them, through every renderer: they are shown, and are never taken for markup."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from flash_export.printable import encode_text, escape_unprintable
from flash_export.ranges.growth import fit_growth
from flash_export.report.html import render_html
from flash_export.report.junit import render_junit
from flash_export.report.markdown import render_markdown
from flash_export.report.terminal import print_document
from flash_export.typed_json import build
from flash_export.validators.bisect.page import describe_bisection
from flash_export.validators.bisect.results import BisectReport, ProbeRow, Run
from flash_export.validators.ranges.page import describe_ranges
from flash_export.validators.ranges.results import RangePoint, RangeRow, RangesReport
from flash_export.validators.report.comparison import compare_reports
from flash_export.validators.report.comparison_page import describe_comparison
from flash_export.validators.report.validation import describe_validation
from flash_export.validators.results import ValidationReport
from flash_export.validators.trade_off.page import describe_trade_off
from tests.validators.report.builders import CRASHED, FAILED, FOOTPRINT, make_invariance, make_passed, make_report
from tests.validators.trade_off.builders import FP8, FP32, make_trade_off

if TYPE_CHECKING:
    from flash_export.report.document import Document
    from flash_export.validators.trade_off.results import TradeOff

NASTY = (
    "x[/red]y", "[bold", "[1, 2]", ":smile:", "\\[a]", "|`*_~", "a\nb", "a\r\nb", "\udcff", "\ud800", "\x1b[31m",
    "\x00", "\x9b",
    "</title></script><script>alert(1)</script>", '"><svg onload="x">', "'&amp;<b>", "]]>", "<!--", "{{ 7 * 7 }}",
    "{% raw %}", "%s{0}", "$x$", "@someone", "#1", "é字🙂",
)  # fmt: skip
NAMES = st.one_of(
    st.sampled_from(NASTY),
    st.lists(st.sampled_from(NASTY), min_size=1, max_size=3).map("".join),
    st.text(st.characters(), min_size=1, max_size=12),
)
few = settings(max_examples=25, deadline=None)


def make_named(name: str) -> ValidationReport:
    """Return a report that has the name wherever a file or a user may put one."""
    backend = f"onnx:{name}"
    report = make_report(
        make_passed(backend=backend),
        replace(FAILED, backend=backend, reason=f"failed {name}"),
        replace(CRASHED, backend=backend, reason=name),
        make_invariance("repeat", backend=backend, reason=name),
        replace(CRASHED, seq_len=None, batch=None, status="skipped", backend="ort-cuda", reason=name),
        bits={"eager": 1.0, backend: 1.1},
        diagnosis=(f"{backend}: {name}",),
        footprints=(replace(FOOTPRINT, backend=backend, reason=name),),
    )
    return replace(report, bundle=name, environment={**report.environment, "plan": name, "cpu": name})


def make_named_trade_off(name: str) -> TradeOff:
    entry = replace(FP32, name=name, path=f"bundles/{name}")
    return make_trade_off(entry, replace(FP8, quality=replace(FP8.quality, reason=name)), environment={"cpu": name})


def make_named_bisection(name: str) -> BisectReport:
    rows = (
        ProbeRow("embedding", name, "clean", 1e-8, 2e-8, 3e-5),
        ProbeRow("layers.0.kv", name, "wrong", 1.0, 1e-6, 1e-5, name),
    )
    return BisectReport(name, name, name, (Run(1, 9, False, rows, ""),))  # fmt: skip


def make_named_ranges(name: str) -> RangesReport:
    points = tuple(RangePoint(length, 1.0, 1.0, 1.0) for length in (8, 16, 32))
    row = RangeRow("layers.0.kv", points, fit_growth((8, 16, 32), (1.0, 1.0, 1.0)), "sum")
    return RangesReport(name, name, (8, 16, 32), 96, (row,), name)


def describe(name: str) -> tuple[Document, ...]:
    """Return every kind of report with the name in it."""
    report = make_named(name)
    return (
        describe_validation(report),
        describe_comparison(compare_reports(make_named("plain"), report)),
        describe_trade_off(make_named_trade_off(name)),
        describe_bisection(make_named_bisection(name)),
        describe_ranges(make_named_ranges(name)),
    )


def show(name: str) -> str:
    """Return what a terminal shows, on a console with everything switched on that could go wrong."""
    stream = io.StringIO()
    console = Console(file=stream, width=100_000, markup=True, emoji=True, highlight=True)
    for document in describe(name):
        print_document(document, console)
    return stream.getvalue()


@few
@given(NAMES)
def test_terminal_shows_the_name_and_nothing_of_it_acts(name: str) -> None:
    text = show(name)
    text.encode()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
    for line in escape_unprintable(name).split("\n"):
        assert " ".join(line.split()) in " ".join(text.split())  # a terminal shows a tab as spaces


class Outline(HTMLParser):
    """What a browser would make of a page: its tags and attributes' names, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.tags.append(("comment",))


@few
@given(NAMES)
def test_pages_show_the_name_and_have_no_tag_of_it(name: str) -> None:
    for document, plain in zip(describe(name), describe("n" * len(name)), strict=True):
        outline = Outline(encode_text(render_html(document)).decode())
        assert outline.tags == Outline(render_html(plain)).tags  # a plot leaves room for the length of a name
        assert escape_unprintable(name) in outline.text


@few
@given(NAMES)
def test_markdown_has_the_same_lines_and_cells(name: str) -> None:
    def outline(text: str) -> list[int]:
        text.encode()
        return [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in text.split("\n")]

    for document, plain in zip(describe(name), describe("other"), strict=True):
        assert outline(render_markdown(document)) == outline(render_markdown(plain))
        assert "<script" not in render_markdown(document)


@few
@given(NAMES)
def test_junit_is_xml_with_the_name(name: str) -> None:
    root = ET.fromstring(render_junit(describe_validation(make_named(name))))
    properties = {one.get("name"): one.get("value") for one in root.iter("property")}
    shown = re.sub("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\N{REPLACEMENT CHARACTER}", name)
    assert properties["bundle"] == shown
    assert [one.get("message") for one in root.iter("skipped")] == [shown]


@few
@given(NAMES)
def test_json_reads_back(name: str) -> None:
    report = make_named(name)
    text = report.to_json()
    text.encode()
    values = json.loads(text)
    del values["passed"]
    assert build(values, ValidationReport) == report
