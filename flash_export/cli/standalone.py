"""``flash-export standalone``: a folder that runs a model without PyTorch and without this package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flash_export.cli.options import REPORT, output_options
from flash_export.formatting import format_bytes
from flash_export.report.document import Document, Pairs, Section

if TYPE_CHECKING:
    from flash_export.cli.output import Output
    from flash_export.standalone.standalone import Standalone


@click.command("standalone", short_help="Write programs that run a model without PyTorch.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), required=True, help="Folder to create.")
@click.option("--force", is_flag=True, help="Replace such a folder that is there, with what was changed in it.")
@output_options(*REPORT)
def standalone_command(output: Output, bundle: Path, target: Path, force: bool) -> Standalone:
    """Write a folder that runs the model of BUNDLE without PyTorch and without flash-export.

    It holds the graphs, a README with their inputs and outputs, and a program in each language, made for this model:
    one pass and, where the model carries a state, generation. Where the bundle has engines, they are in it too, with a
    program for TensorRT.

    \b
    Examples:
      flash-export standalone BUNDLE -o service
      flash-export standalone BUNDLE -o service --force
      flash-export standalone BUNDLE -o service --json - -q | jq .left_out
    """
    from flash_export.bundle.bundle import Bundle
    from flash_export.standalone.standalone import write_standalone

    made = write_standalone(Bundle.open(bundle), target, force=force)
    output.show(describe_standalone(made))
    output.suggest_next("validate", bundle)
    return made


def describe_standalone(made: Standalone) -> Document:
    """Return the report of what a folder holds."""
    pairs = [("programs", ", ".join(made.clients) or "none"), ("files", ", ".join(made.files))]
    pairs += [("left out", f"{what}: {why}") for what, why in made.left_out.items()]
    return Document(
        f"{made.family}, {made.precision}: {made.path} ({format_bytes(made.size_bytes)})",
        "flash-export standalone",
        sections=(Section("", Pairs(tuple(pairs))),),
    )
