"""``flash-export profile-ranges``: how large the quantities of a model become, and where fp16 would overflow."""

from __future__ import annotations

from pathlib import Path

import click

from flash_export.cli.options import STDOUT, IntegerList, show_progress


@click.command("profile-ranges")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--lengths",
    "seq_lens",
    type=IntegerList(),
    help="Lengths to measure.  [default: twice the chunk and its doublings, as far as text, memory and time go]",
)
@click.option("--windows", type=int, default=4, show_default=True, help="Pieces of text of each length.")
@click.option("--random", is_flag=True, help="Read random tokens even if the bundle has a held-out text.")
@click.option("--seconds", type=float, default=60.0, show_default=True, help="Time for the default lengths.")
@click.option("--threads", type=int, help="CPU threads of one operator.")
@click.option("--all", "show_all", is_flag=True, help="Print every quantity, not the worst alone.")
@click.option("--json", "json_file", metavar="FILE", help="Write all numbers as JSON; - for stdout.")
def profile_ranges_command(
    bundle: Path,
    seq_lens: tuple[int, ...] | None,
    windows: int,
    random: bool,
    seconds: float,
    threads: int | None,
    show_all: bool,
    json_file: str | None,
) -> None:
    """Show how large the quantities inside the model of BUNDLE become, and at which length fp16 would overflow.

    Measured is the model itself, on the bundle's held-out text if it has one, at several lengths; the length at which
    the exported graph would exceed 65504 in fp16 is where the growth leads.

    \b
    Examples:
      flash-export profile-ranges BUNDLE
      flash-export profile-ranges BUNDLE --lengths 256,1024,4096 --all
      flash-export profile-ranges BUNDLE --json ranges.json
    """
    from flash_export.bundle import Bundle
    from flash_export.files import write_file
    from flash_export.terminal import open_console
    from flash_export.validators.ranges.profile import RangesOptions, profile_ranges
    from flash_export.validators.ranges.terminal import DEFAULT_ROWS, print_ranges

    options = RangesOptions(seq_lens=seq_lens, windows=windows, random=random, seconds=seconds, threads=threads)
    stderr = open_console(stderr=True)
    with show_progress(stderr, "Measuring") as progress:
        report = profile_ranges(Bundle.open(bundle), options, progress)
    if json_file == STDOUT:
        click.echo(report.to_json(), nl=False)
    elif json_file is not None:
        write_file(Path(json_file), report.to_json().encode())
    print_ranges(report, stderr if json_file == STDOUT else open_console(), None if show_all else DEFAULT_ROWS)
