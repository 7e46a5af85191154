"""``flash-export profile-ranges``: how large the quantities of a model become, and where fp16 would overflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flash_export.cli.options import REPORT, IntegerList, output_options

if TYPE_CHECKING:
    from flash_export.cli.output import Output
    from flash_export.validators.ranges.results import RangesReport


@click.command("profile-ranges", short_help="Show where values would overflow in fp16.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--lengths",
    "seq_lens",
    type=IntegerList(),
    help="Lengths to measure.  [default: twice the chunk and its doublings, as far as data, memory and time go]",
)
@click.option("--windows", type=int, default=4, show_default=True, help="Pieces of data of each length.")
@click.option("--random", is_flag=True, help="Read random inputs even if the bundle has held-out data.")
@click.option("--data", type=click.Path(path_type=Path), metavar="FILE", help="Data to read in place of held-out data.")
@click.option("--seconds", type=float, default=60.0, show_default=True, help="Time for the default lengths.")
@click.option("--threads", type=int, help="CPU threads of one operator.")
@click.option("--all", "show_all", is_flag=True, help="Print every quantity, not the worst alone.")
@output_options(*REPORT)
def profile_ranges_command(
    output: Output,
    bundle: Path,
    seq_lens: tuple[int, ...] | None,
    windows: int,
    random: bool,
    data: Path | None,
    seconds: float,
    threads: int | None,
    show_all: bool,
) -> RangesReport:
    """Show how large the quantities inside the model of BUNDLE become, and at which length fp16 would overflow.

    Measured is the model itself, on the bundle's held-out data if it has any, at several lengths; the length at which
    the exported graph would exceed 65504 in fp16 is where the growth leads.

    \b
    Examples:
      flash-export profile-ranges BUNDLE
      flash-export profile-ranges BUNDLE --lengths 256,1024,4096 --all
      flash-export profile-ranges BUNDLE --json ranges.json
    """
    from flash_export.bundle.bundle import Bundle
    from flash_export.validators.ranges.page import DEFAULT_ROWS, describe_ranges
    from flash_export.validators.ranges.profile import RangesOptions, profile_ranges

    options = RangesOptions(seq_lens, windows, random, data, seconds, threads)
    with output.show_progress("Measuring") as progress:
        report = profile_ranges(Bundle.open(bundle), options, progress)
    output.show(describe_ranges(report, None if show_all else DEFAULT_ROWS))
    output.suggest_next("onnx", bundle, "-o", f"{bundle}-fp16", "--precision", "fp16")
    return report
