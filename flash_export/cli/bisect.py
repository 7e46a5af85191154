"""``flash-export bisect``: find the block and the quantity where a graph leaves the model."""

from __future__ import annotations

from pathlib import Path

import click

from flash_export.cli.options import STDOUT, show_progress

EXIT_FAULT_FOUND = 1


@click.command("bisect")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--seq-len", type=int, help="Length of the input.  [default: into the third chunk, then 1 and one chunk]")
@click.option("--batch", type=int, help="Rows of the input.  [default: 2, as far as the graph allows]")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="Compare with the graph of this bundle in place of the float64 model.",
)
@click.option("--backend", default="ort-cpu", show_default=True, help="What runs the graph: ort-cpu or ort-cuda.")
@click.option("--threads", type=int, help="CPU threads of one operator, for both.")
@click.option("--json", "json_file", metavar="FILE", help="Write all numbers as JSON; - for stdout.")
@click.option("--html", "html_file", metavar="FILE", help="Write a page with a plot of the error by depth.")
def bisect_command(
    bundle: Path,
    seq_len: int | None,
    batch: int | None,
    against: Path | None,
    backend: str,
    threads: int | None,
    json_file: str | None,
    html_file: str | None,
) -> None:
    """Find the first block and quantity where the graph of BUNDLE leaves the model.

    Reads the graph and the float64 model at every quantity that both compute, and says which one is wrong first. Exit
    code 0 if none is, 1 if one is, 2 for bad input.

    \b
    Examples:
      flash-export bisect BUNDLE
      flash-export bisect BUNDLE --seq-len 300 --batch 1 --html fault.html
      flash-export bisect quantized/ --against BUNDLE
      flash-export bisect BUNDLE --json - | jq .finding
    """
    from flash_export.bundle import Bundle
    from flash_export.files import write_file
    from flash_export.printable import encode_text
    from flash_export.terminal import open_console
    from flash_export.validators.bisect.bisect import BisectOptions, bisect_bundle
    from flash_export.validators.bisect.html import render_bisection
    from flash_export.validators.bisect.summary import describe_finding
    from flash_export.validators.bisect.terminal import print_bisection

    options = BisectOptions(seq_len=seq_len, batch=batch, backend=backend, threads=threads)
    other = Bundle.open(against) if against is not None else None
    stderr = open_console(stderr=True)
    with show_progress(stderr, "Bisecting") as progress:
        report = bisect_bundle(Bundle.open(bundle), options, against=other, progress=progress)
    text = report.to_json(describe_finding(report))
    if json_file is not None and json_file != STDOUT:
        write_file(Path(json_file), text.encode())
    if html_file is not None:
        write_file(Path(html_file), encode_text(render_bisection(report)))
    if json_file == STDOUT:
        click.echo(text, nl=False)
    print_bisection(report, stderr if json_file == STDOUT else open_console())
    if not report:
        raise click.exceptions.Exit(EXIT_FAULT_FOUND)
