"""A report says in every form what original and exported model share unproven."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from flash_export.validators.report.html import render_html
from flash_export.validators.report.junit import render_junit
from flash_export.validators.report.markdown import render_markdown
from flash_export.validators.report.terminal import print_report
from tests.validators.report.builders import ENVIRONMENT, make_passed, make_report

if TYPE_CHECKING:
    from collections.abc import Callable

    from flash_export.validators.results import ValidationReport

PLAIN = make_report(make_passed())
ASSUMED = replace(PLAIN, environment={**ENVIRONMENT, "assumed": "group_size 256, library_version 0.1.9"})


def render_terminal(report: ValidationReport) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_report(report, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_caveat_is_there_only_where_something_was_assumed() -> None:
    assert PLAIN.caveat is None
    assert ASSUMED.caveat is not None


@pytest.mark.parametrize("render", [render_terminal, render_html, render_markdown])
def test_caveat_is_in_what_people_read(render: Callable[[ValidationReport], str]) -> None:
    assert "Assumed: group" not in render(PLAIN)
    text = render(ASSUMED).replace("\\_", "_")
    assert "Assumed: group_size 256, library_version 0.1.9. Original and exported model share this" in text


@pytest.mark.parametrize("render", [lambda report: report.to_json(), lambda report: render_junit(report).decode()])
def test_what_was_assumed_is_in_what_machines_read(render: Callable[[ValidationReport], str]) -> None:
    assert "group_size 256, library_version 0.1.9" in render(ASSUMED)
