"""A comparison of two reports in a terminal: a section for whatever changed, and the outcome as the last line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.padding import Padding

from flash_export.terminal import make_text
from flash_export.validators.report.comparison_text import list_sections, phrase_outcome

if TYPE_CHECKING:
    from rich.console import Console

    from flash_export.validators.report.comparison import Comparison


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print what changed, and a last line that says whether the second run is worse."""
    for section in list_sections(comparison):
        console.print(make_text((section.title, "bold")))
        for name, text in section.shown:
            console.print(Padding(make_text(f"{name}: {text}"), (0, 0, 0, 2), expand=False))
        if section.hidden:
            console.print(make_text(f"  and {section.hidden} more"))
        console.print()
    word = ("NO WORSE", "bold green") if comparison else ("WORSE", "bold red")
    console.print(make_text(word, f"  {phrase_outcome(comparison)}"), soft_wrap=True)
