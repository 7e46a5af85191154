"""``flash-export report``: show a validation again, or what changed from one to another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flash_export.cli.options import CHECKS, output_options

if TYPE_CHECKING:
    from flash_export.cli.output import Output
    from flash_export.validators.report.comparison import Comparison
    from flash_export.validators.results import ValidationReport


def is_no_regression(result: ValidationReport | Comparison) -> bool:
    """Return whether all is well: a comparison has a verdict, a report that is shown again had it when it was made."""
    from flash_export.validators.results import ValidationReport

    return isinstance(result, ValidationReport) or bool(result)


@click.command("report", short_help="Show a validation again, or compare two of them.")
@click.argument("report", metavar="A.json", type=click.Path(path_type=Path))
@click.argument("other", metavar="[B.json]", type=click.Path(path_type=Path), required=False)
@output_options(*CHECKS, verdict=is_no_regression)
def report_command(
    output: Output,
    report: Path,
    other: Path | None,
) -> ValidationReport | Comparison:
    """Show the validation A.json again, or what changed from A.json to B.json.

    Only what the two runs can tell apart is a change: an error that moved by more than the eager model's own, a
    latency whose 95% interval lies wholly above or below the other.

    Exit code 0; of two reports 1 if a check that passed in A fails in B, or A as a whole passed and B does not; 2 for
    bad input.

    \b
    Examples:
      flash-export report BUNDLE/reports/report.json
      flash-export report report.json --html report.html --junit junit.xml
      flash-export report before.json after.json
      flash-export report a.json b.json --markdown - >> $GITHUB_STEP_SUMMARY
    """
    if other is not None and output.files["junit"]:
        raise click.UsageError("--junit lists the checks of one report, and two were given; use --markdown")
    from flash_export.validators.report.comparison import compare_reports
    from flash_export.validators.report.comparison_page import describe_comparison
    from flash_export.validators.report.files import read_report
    from flash_export.validators.report.validation import describe_validation

    first = read_report(report)
    if other is None:
        output.show(describe_validation(first))
        output.suggest_next("bisect" if not first else "validate", first.bundle)
        return first
    second = read_report(other)
    comparison = compare_reports(first, second)
    output.show(describe_comparison(comparison))
    output.suggest_next("bisect" if not comparison else "validate", second.bundle)
    return comparison
