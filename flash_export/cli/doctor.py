"""``flash-export doctor``: what is installed here and what it is good for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flash_export.cli.options import output_options

if TYPE_CHECKING:
    from rich.console import Console

    from flash_export.cli.output import Output
    from flash_export.doctor import Diagnosis

_STYLES = {"ok": "green", "limited": "yellow", "missing": "yellow", "broken": "red"}


@click.command("doctor", short_help="Show what is installed here, and what to install.")
@output_options(verdict=bool)
def doctor_command(output: Output) -> Diagnosis:
    """Show what is installed here, what can be done with it, and what to install for the rest.

    Exit code 1 if no model can be exported here, else 0.

    \b
    Examples:
      flash-export doctor
      flash-export doctor --json -
    """
    from flash_export.doctor import diagnose

    diagnosis = diagnose()
    _print_table(diagnosis, output.console)
    output.suggest_next("demo" if diagnosis else "doctor")
    return diagnosis


def _print_table(diagnosis: Diagnosis, console: Console) -> None:
    from rich.table import Table

    from flash_export.terminal import make_text

    table = Table("", "status", "version", "here", "to do", box=None, pad_edge=False)
    for finding in diagnosis.findings:
        status = finding.status.value
        table.add_row(
            finding.name,
            make_text((status, _STYLES[status])),
            finding.version,
            make_text(finding.detail),
            make_text(finding.cure),
        )
    console.print(table)
    console.print("Models can be exported here." if diagnosis else "No model can be exported here.", style="bold")
