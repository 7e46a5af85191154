"""A report says in every form what original and exported model share unproven."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from flash_export.report.html import render_html
from flash_export.report.junit import render_junit
from flash_export.report.markdown import render_markdown
from flash_export.report.terminal import print_document
from flash_export.validators.report.validation import describe_validation
from tests.validators.report.builders import ENVIRONMENT, make_passed, make_report

if TYPE_CHECKING:
    from collections.abc import Callable

    from flash_export.report.document import Document

PLAIN = make_report(make_passed())
ASSUMED = replace(PLAIN, environment={**ENVIRONMENT, "assumed": "group_size 256, library_version 0.1.9"})


def render_terminal(report: Document) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_document(report, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_caveat_is_there_only_where_something_was_assumed() -> None:
    assert PLAIN.caveats == ()
    assert len(ASSUMED.caveats) == 1


@pytest.mark.parametrize("render", [render_terminal, render_html, render_markdown])
def test_caveat_is_in_what_people_read(render: Callable[[Document], str]) -> None:
    assert "Assumed: group" not in render(describe_validation(PLAIN))
    text = render(describe_validation(ASSUMED)).replace("\\_", "_")
    assert "Assumed: group_size 256, library_version 0.1.9. Original and exported model share this" in text


def test_what_was_assumed_is_in_what_machines_read() -> None:
    for text in (ASSUMED.to_json(), render_junit(describe_validation(ASSUMED))):
        assert "group_size 256, library_version 0.1.9" in text
