"""What is said when a command is interrupted: that it was, and how to go on if it can."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

# Keys of click's meta: the journal of what is done, for commands with --resume; and the command line as it was given.
RESUMABLE = "flash_export.journal"
ARGUMENTS = "flash_export.arguments"
RESUME = "--resume"


def describe_interrupt(ctx: click.Context) -> str:
    """Return the line: with the command to go on where a journal was kept."""
    journal = ctx.meta.get(RESUMABLE)
    if journal is None or not journal.is_file():
        return "Interrupted."
    arguments = ctx.meta[ARGUMENTS]
    resume = () if RESUME in arguments else (RESUME,)
    return f"Interrupted. Go on with: {shlex.join(('flash-export', *arguments, *resume))}"
