"""``flash-export doctor``: what is installed here and what it is good for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flash_export.cli.options import REPORT, output_options
from flash_export.report.document import Document, Section, Styled, tabulate, text

if TYPE_CHECKING:
    from flash_export.cli.output import Output
    from flash_export.doctor import Diagnosis
    from flash_export.report.document import Style

_STYLES: dict[str, Style] = {"ok": "passed", "limited": "skipped", "missing": "skipped", "broken": "failed"}


@click.command("doctor", short_help="Show what is installed here, and what to install.")
@output_options(*REPORT, verdict=bool)
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
    output.show(describe_diagnosis(diagnosis))
    output.suggest_next("demo" if diagnosis else "doctor")
    return diagnosis


def describe_diagnosis(diagnosis: Diagnosis) -> Document:
    """Return the report of a diagnosis."""
    return Document(
        subject="What is installed here, and what it is good for",
        command="flash-export doctor",
        headline="Models can be exported here." if diagnosis else "No model can be exported here.",
        status="passed" if diagnosis else "failed",
        word="READY" if diagnosis else "NOT READY",
        sections=(
            Section(
                "",
                tabulate(
                    diagnosis.findings,
                    [
                        (text("what"), lambda finding: finding.name),
                        (text("status"), lambda finding: Styled(finding.status.value, _STYLES[finding.status.value])),
                        (text("version"), lambda finding: finding.version),
                        (text("here", is_prose=True), lambda finding: finding.detail),
                        (text("to do", is_prose=True), lambda finding: finding.cure),
                    ],
                ),
            ),
        ),
    )
