"""The pages of the documentation, and the code blocks in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))

_INDENTED = re.compile(r"(?:^ {4}.*\n(?:[ ]*\n(?= {4}))*)+", re.MULTILINE)
_FENCED = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)


def read_blocks(page: Path) -> list[str]:
    """Return the code blocks of a page in order, without the indentation."""
    text = page.read_text(encoding="utf-8")
    found = [(match.start(), re.sub(r"^ {4}", "", match[0], flags=re.MULTILINE)) for match in _INDENTED.finditer(text)]
    found += [(match.start(), match[2]) for match in _FENCED.finditer(text)]
    return [block for _, block in sorted(found)]


def read_fences(page: Path) -> list[tuple[str, str]]:
    """Return what stands after the opening fence of each fenced block, such as ``sh``, and the block; in order."""
    return [(match[1].strip(), match[2]) for match in _FENCED.finditer(page.read_text(encoding="utf-8"))]


def read_spans(page: Path) -> list[str]:
    """Return what stands between backticks in a page, outside of fenced blocks; table cells escape bars."""
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(span.replace("\\|", "|").split()) for span in re.findall(r"`([^`]+)`", text)]
