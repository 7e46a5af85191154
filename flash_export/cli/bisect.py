"""``flash-export bisect``: find the block and the quantity where a graph leaves the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flash_export.cli.options import CHECKS, Choice, output_options
from flash_export.config import FORWARD, GRAPHS

if TYPE_CHECKING:
    from flash_export.cli.output import Output
    from flash_export.validators.bisect.results import BisectReport


@click.command("bisect", short_help="Find the block where a graph leaves the model.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--seq-len",
    type=int,
    help="Length of the input.  [default: into the third chunk, or the ninth of a BigBird; then 1 and one chunk]",
)
@click.option("--batch", type=int, help="Rows of the input.  [default: 2, as far as the graph allows]")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="Compare with the graph of this bundle in place of the float64 model.",
)
@click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read the inputs.npz of a check that 'flash-export validate --save-failures' kept, in place of random inputs.",
)
@click.option(
    "--graph",
    type=Choice(GRAPHS),
    default=FORWARD,
    show_default=True,
    help="Graph to read. Of those that carry a state, --seq-len is the number of tokens of a run.",
)
@click.option("--backend", default="ort-cpu", show_default=True, help="What runs it: ort-cpu, ort-cuda or trt-network.")
@click.option("--threads", type=int, help="CPU threads of one operator, for both.")
@output_options(*CHECKS, verdict=bool)
def bisect_command(
    output: Output,
    bundle: Path,
    seq_len: int | None,
    batch: int | None,
    against: Path | None,
    inputs: Path | None,
    graph: str,
    backend: str,
    threads: int | None,
) -> BisectReport:
    """Find the first block and quantity where the graph of BUNDLE leaves the model.

    Reads the graph and the float64 model at every quantity that both compute, and says which one is wrong first. Exit
    code 0 if none is, 1 if one is, 2 for bad input.

    \b
    Examples:
      flash-export bisect BUNDLE
      flash-export bisect BUNDLE --seq-len 300 --batch 1 --html fault.html
      flash-export bisect BUNDLE --graph extend
      flash-export bisect quantized/ --against BUNDLE
      flash-export bisect BUNDLE --inputs failures/ort-cpu_3x300-masked/inputs.npz
      flash-export bisect BUNDLE --json - | jq .finding
    """
    from flash_export.bundle.bundle import Bundle
    from flash_export.validators.bisect.bisect import BisectOptions, bisect_bundle
    from flash_export.validators.bisect.page import describe_bisection

    options = BisectOptions(seq_len, batch, backend, threads, inputs, graph)
    opened, other = Bundle.open(bundle), Bundle.open(against) if against is not None else None
    with output.show_progress("Bisecting") as progress:
        report = bisect_bundle(opened, options, against=other, progress=progress)
    output.show(describe_bisection(report))
    if report:
        output.suggest_next("validate", bundle)
    elif opened.get_graph().is_half:
        output.suggest_next("profile-ranges", bundle)
    else:
        lengths = ("--seq-lens", str(report.shown_run.seq_len)) if graph == FORWARD else ()
        output.suggest_next("validate", bundle, *lengths)
    return report
