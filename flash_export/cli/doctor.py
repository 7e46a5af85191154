"""``flash-export doctor``: what is installed here and what it is good for."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from flash_export.doctor import Diagnosis

EXIT_CANNOT_EXPORT = 1
_STYLES = {"ok": "green", "limited": "yellow", "missing": "yellow", "broken": "red"}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def doctor_command(context: click.Context, as_json: bool) -> None:
    """Show what is installed here, what can be done with it, and what to install for the rest.

    Exit code 1 if no model can be exported here, else 0.

    \b
    Examples:
      flash-export doctor
      flash-export doctor --json
    """
    from flash_export.doctor import diagnose

    diagnosis = diagnose()
    if as_json:
        click.echo(json.dumps({"can_export": bool(diagnosis), **dataclasses.asdict(diagnosis)}, indent=2))
    else:
        _print_table(diagnosis)
    context.exit(0 if diagnosis else EXIT_CANNOT_EXPORT)


def _print_table(diagnosis: Diagnosis) -> None:
    from rich.table import Table

    from flash_export.terminal import make_text, open_console

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
    console = open_console()
    console.print(table)
    console.print("Models can be exported here." if diagnosis else "No model can be exported here.", style="bold")
