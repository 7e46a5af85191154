from __future__ import annotations

import io

from rich.console import Console

from flash_export.report.document import (
    Document,
    Fact,
    Note,
    Notes,
    Pairs,
    Section,
    Styled,
    Table,
    number,
    tabulate,
    text,
)
from flash_export.report.terminal import print_document, wrap_pair

NUMBERS = tabulate(
    [1.5, 22.25],
    [
        (text("name"), lambda value: f"value {value}"),
        (number("double", is_minor=True), lambda value: f"{2 * value:030}"),
        (number("half"), lambda value: f"{value / 2}"),
        (text("way", is_prose=True), lambda value: Styled("a long way to go " * 3, "soft")),
    ],
    lambda value: "it is large" if value > 9 else None,
)


def show(document: Document, width: int = 80) -> list[str]:
    stream = io.StringIO()
    print_document(document, Console(file=stream, width=width))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_a_long_value_goes_on_below_itself() -> None:
    assert wrap_pair("operators", "Add 51, layer-wise 2, MatMul 43", 29) == [
        "  operators Add 51,",
        "            layer-wise 2,",
        "            MatMul 43",
    ]
    assert wrap_pair("path", "a" * 40, 29) == ["  path      " + "a" * 40], "a word that a user would copy is not cut"
    assert wrap_pair("operators", "Add 51, layers 2, MatMul\N{NO-BREAK SPACE}43", 31)[1:] == ["            MatMul 43"]


def test_columns_that_matter_less_are_left_out_where_there_is_no_room() -> None:
    document = Document("subject", "command", sections=(Section("Title", NUMBERS),))
    wide, narrow = show(document, 140), show(document, 50)
    assert wide[3].split() == ["name", "double", "half", "way"]
    assert narrow[3].split() == ["name", "half", "way"]
    assert all(len(line) <= 50 for line in narrow)
    assert not any("\N{HORIZONTAL ELLIPSIS}" in line for line in narrow)
    assert wide[-1] == narrow[-1] == "  value 22.25: it is large"


def test_order_is_subject_sections_notes_facts_and_last_the_verdict() -> None:
    document = Document(
        "subject",
        "command",
        "It is good.",
        "passed",
        "PASSED",
        "3 of 3",
        alarms=("look",),
        caveats=("assumed",),
        facts=(Fact("error", "1%", "of the limit"),),
        notes=(Note("no GPU", "skipped", "trt"), Note("off", "failed", "ort", "batch 1", "flash-export validate b")),
        sections=(
            Section("Pairs", Pairs((("size", "3 MiB"),))),
            Section("Empty", Notes(())),
            Section("Elsewhere", Pairs((("a", "b"),)), views=("page",)),
        ),
    )
    assert show(document) == [
        "subject",
        "",
        "Pairs",
        "  size      3 MiB",
        "",
        "skipped trt: no GPU",
        "failed ort: off (batch 1)",
        "  repeat it: flash-export validate b",
        "error: 1%, of the limit",
        "assumed",
        "look",
        "It is good.",
        "PASSED  3 of 3",
    ]


def test_missing_value_is_a_dash_an_empty_one_is_empty_and_long_tables_are_cut() -> None:
    table = Table((text("a"), text("b")), (), 2)
    assert not table
    table = tabulate([None, "", "x", "y"], [(text("a"), lambda value: value), (text("b"), lambda _: "1")], max_rows=2)
    lines = show(Document("s", "c", sections=(Section("t", table),)))
    assert [" ".join(line.split()) for line in lines[3:6]] == ["a b", "- 1", "1"]
    assert lines[6] == "and 2 more"
