"""Every example in a docstring is run."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "flash_export": "flash_export",
    "exporters": "flash_export.exporters",
    "validators": "flash_export.validators",
}


def list_modules() -> list[str]:
    """Return the modules that have an example; the folders inside flash_export that are links are taken once."""
    return [
        ".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts])
        for folder, package in FOLDERS.items()
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not any(parent.is_symlink() for parent in path.parents) and ">>> " in path.read_text()
    ]


def test_there_are_examples() -> None:
    assert len(list_modules()) > 20


@pytest.mark.parametrize("name", list_modules())
def test_examples_in_docstrings_are_true(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0
