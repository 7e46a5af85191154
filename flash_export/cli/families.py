"""``flash-export families``: which models can be exported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flash_export.cli.options import REPORT, output_options
from flash_export.report.document import Document, Section, tabulate, text

if TYPE_CHECKING:
    from flash_export.cli.output import Output
    from flash_export.models.catalogue import Catalogue


@click.command("families", short_help="List the models that can be exported.")
@output_options(*REPORT)
def families_command(output: Output) -> Catalogue:
    """List the model families: whose checkpoints are read, and what has to be told beside the weights.

    A file of weights tells its family by the names of its tensors. The arguments are those of the library's
    constructors or configs; 'onnx' asks for what is missing. Weights of flash-export itself are folders that
    save_pretrained wrote, with a config.json that tells all.

    \b
    Examples:
      flash-export families
      flash-export families --json -
    """
    from flash_export.models.catalogue import list_families

    catalogue = list_families()
    output.show(describe_catalogue(catalogue))
    return catalogue


def describe_catalogue(catalogue: Catalogue) -> Document:
    """Return the report of the families."""
    return Document(
        subject="The models that can be exported",
        command="flash-export families",
        sections=(
            Section(
                "",
                tabulate(
                    catalogue.families,
                    [
                        (text("family"), lambda one: one.name),
                        (text("models", is_prose=True), lambda one: one.title),
                        (text("weights of"), lambda one: one.source),
                        (text("task"), lambda one: one.task),
                        (text("lengths", is_prose=True), lambda one: one.lengths),
                    ],
                    lambda one: f"weights do not tell {', '.join(one.asked)}" if one.asked else None,
                ),
            ),
        ),
    )
