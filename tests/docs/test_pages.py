"""Every page of docs/ is in its index, and every message that is explained is one that the program prints."""

from __future__ import annotations

import ast
import functools
import re

import pytest

from tests.docs.pages import PAGES, ROOT

INDEX = ROOT / "docs" / "README.md"
MESSAGES = re.findall(r"^### `(.+)`$", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
VARYING = "\0"


def test_every_page_is_in_the_index_once() -> None:
    links = re.findall(r"^(?:\d+\.|-) \[([^\]]+)\]\(([^)]+)\): ", INDEX.read_text(encoding="utf-8"), re.MULTILINE)
    pages = [str(page.relative_to(INDEX.parent)) for page in PAGES if INDEX.parent in page.parents and page != INDEX]

    assert sorted(link for _, link in links) == sorted(pages)
    assert all(label == link for label, link in links)


def test_many_messages_are_explained() -> None:
    assert len(MESSAGES) >= 25
    assert len(set(MESSAGES)) == len(MESSAGES)


@pytest.mark.parametrize("message", MESSAGES)
def test_message_is_in_the_source(message: str) -> None:
    pieces = [piece for piece in (part.strip() for part in message.split("...")) if piece]

    assert pieces
    assert any(_has_in_order(literal, pieces) for literal in _list_literals())


@pytest.mark.parametrize("message", ["no such words in any message", "does not exist; already holds a bundle"])
def test_what_is_not_printed_is_found_out(message: str) -> None:
    assert not any(_has_in_order(literal, [message]) for literal in _list_literals())


def _has_in_order(literal: str, pieces: list[str]) -> bool:
    start = 0
    for piece in pieces:
        start = literal.find(piece, start)
        if start < 0:
            return False
        start += len(piece)
    return True


@functools.cache
def _list_literals() -> tuple[str, ...]:
    """Return every text in the source, with what is filled in when it is printed masked."""
    folders = (ROOT / "flash_export", ROOT / "exporters", ROOT / "validators")
    found = set()
    for file in sorted(path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.add(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else VARYING for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return tuple(found)


def test_tests_lie_where_contributing_says() -> None:
    skipped = {"assets", "benchmarks", "docs", "examples", "fuzz"}  # beside the code, or all of it
    folders = {file.parent.relative_to(ROOT / "tests") for file in (ROOT / "tests").rglob("test_*.py")}
    parts = {file.parent.relative_to(ROOT / "flash_export") for file in (ROOT / "flash_export").rglob("*.py")}
    parts |= {
        file.parent.relative_to(ROOT) for name in ("exporters", "validators") for file in (ROOT / name).rglob("*.py")
    }

    assert {str(folder) for folder in folders - parts} == skipped
