"""Commands, options, ``make`` targets, files and headings that the documentation names exist."""

from __future__ import annotations

import contextlib
import itertools
import re
import shlex
from typing import TYPE_CHECKING

import click
import pytest

from flash_export.cli.main import main
from tests.docs.pages import PAGES, ROOT, read_blocks, read_fences, read_spans

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENDS_OF_COMMANDS = {"|", "||", "&&", ";", ">", ">>"}
OPTIONS = {name for command in (main, *main.commands.values()) for param in command.params for name in param.opts}


def _cut_command(line: str) -> list[str]:
    """Return the words of the ``flash-export`` command in a line of shell, or none."""
    start = line.find("flash-export ")
    if start < 0 or line[:start].strip() not in ("", "$", "- run:") or "▶" in line:  # a diagram
        return []
    words = shlex.split(line[start:], comments=True)
    ends = [index for index, word in enumerate(words) if word in ENDS_OF_COMMANDS]
    return words[1 : min(ends, default=len(words))]


def _list_commands() -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        lines = [line for block in read_blocks(page) for line in block.splitlines()]
        for line in [*lines, *read_spans(page)]:
            if words := _cut_command(line):
                yield str(page.relative_to(ROOT)), words
    for name, command in main.commands.items():
        for line in (command.help or "").splitlines():
            if words := _cut_command(line):
                yield f"{name} --help", words


COMMANDS = list(_list_commands())


def test_commands_are_found_everywhere() -> None:
    places = {place for place, _ in COMMANDS}
    assert {
        "README.md",
        "docs/precision.md",
        "docs/validation.md",
        *(f"{name} --help" for name in main.commands),
    } <= places


@pytest.mark.parametrize(("place", "words"), COMMANDS, ids=[f"{place}: {' '.join(words)}" for place, words in COMMANDS])
def test_command_is_understood(place: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for option, name in itertools.pairwise(words):
        if option == "--prompt-file":  # what the command opens while it parses
            (tmp_path / name).touch()
    with contextlib.suppress(click.exceptions.Exit):  # --help, --version
        try:
            _parse(words)
        except click.MissingParameter as error:  # prose names a command without what it works on
            if not (place.endswith(".md") and isinstance(error.param, click.Argument)):
                raise


def _parse(words: list[str]) -> None:
    command = main if words[0].startswith("-") else main.commands[words[0]]
    parent = None if command is main else click.Context(main, **main.context_settings)
    with command.make_context(words[0], list(words if command is main else words[1:]), parent=parent):
        pass


@pytest.mark.parametrize(
    "line",
    ["flash-export validate B --no-such-option", "flash-export trt B --name", "flash-export onnx M -o B --opset fast"],
)
def test_what_is_not_understood_fails(line: str) -> None:
    with pytest.raises(click.UsageError):
        _parse(_cut_command(line))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_option_in_prose_is_one_of_a_command(page: Path) -> None:
    named = {span.split()[0].split("=")[0] for span in read_spans(page) if span.startswith("--")}
    own = set(
        re.findall(r"add_argument\(\s*\"(--[\w-]+)\"", "".join(p.read_text() for p in ROOT.glob("benchmarks/**/*.py")))
    )
    assert named - OPTIONS - own - {"--help"} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_target_and_file_exist(page: Path) -> None:
    lines = [line for block in read_blocks(page) for line in block.splitlines()] + read_spans(page)
    targets = {match[1] for line in lines if (match := re.match(r"make ([a-z-]+)", line))}
    scripts = {match[1] for line in lines if (match := re.match(r"python (\S+\.py)", line))}

    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets - known == set()
    shown = {info.removeprefix("python ") for info, _ in read_fences(page)}  # ```python train.py
    made = {
        f"{match[1]}/model.py" for line in lines if (match := re.match(r"flash-export standalone .* -o (\S+)", line))
    }
    assert [script for script in scripts - shown - made if not (ROOT / script).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.relative_to(ROOT)} leads to {target}"
        if anchor:
            assert anchor in _list_anchors(file), f"{page.relative_to(ROOT)} leads to {target}"


def _list_anchors(page: Path) -> set[str]:
    """Return the names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
