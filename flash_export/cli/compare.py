"""``flash-export compare``: what bundles of one model cost and lose, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flash_export.cli.options import REPORT, IntegerList, output_options

if TYPE_CHECKING:
    from flash_export.cli.output import Output
    from flash_export.validators.trade_off.results import TradeOff


@click.command("compare", short_help="Show what each bundle of one model costs and loses.")
@click.argument("bundles", metavar="BUNDLE...", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="What the others are compared with.  [default: the first]",
)
@click.option("--seq-len", "seq_lens", type=IntegerList(), help="Lengths to time.  [default: 512,2048]")
@click.option("--batch", type=int, help="Rows of a timed run.  [default: 1]")
@click.option(
    "--backend",
    default="ort-cpu",
    show_default=True,
    metavar="NAME",
    help="Where all run: ort-cpu, ort-cuda, ort-tensorrt, ort-tensorrt-rtx, openvino, trt or trt:ENGINE.",
)
@click.option("--threads", type=int, help="CPU threads of one operator, for all.")
@click.option(
    "--windows",
    type=int,
    help="Read this many pieces of data.  [default: all of the held-out data, 8 of random inputs]",
)
@click.option("--data", type=click.Path(path_type=Path), metavar="FILE", help="Data to read in place of held-out data.")
@click.option("--no-latency", is_flag=True, help="Leave timing and memory out.")
@output_options(*REPORT)
def compare_command(
    output: Output,
    bundles: tuple[Path, ...],
    reference: Path | None,
    seq_lens: tuple[int, ...] | None,
    batch: int | None,
    backend: str,
    threads: int | None,
    windows: int | None,
    data: Path | None,
    no_latency: bool,
) -> TradeOff:
    """Show what each BUNDLE of one model costs and loses: size, latency, score, agreement, divergence.

    All bundles read the held-out data of the reference, and are timed in turn, on one backend. What cannot be
    measured here has the reason in its place. Exit code 0, or 2 for bad input.

    \b
    Examples:
      flash-export compare fp32/ fp16/ int8/
      flash-export compare bundles/* --reference bundles/fp32 --html loss.html
      flash-export compare fp32/ int4/ --seq-len 256,4096 --threads 2
      flash-export compare fp32/ int8/ --backend openvino
      flash-export compare fp32/ int8/ --json - | jq '.entries[].quality'
    """
    from flash_export.bundle.bundle import Bundle
    from flash_export.validators.trade_off.compare import DEFAULT_BUDGET_S, CompareOptions, compare_bundles
    from flash_export.validators.trade_off.page import describe_trade_off

    options = CompareOptions(seq_lens, batch, backend, threads, windows, data, 0.0 if no_latency else DEFAULT_BUDGET_S)
    opened = [Bundle.open(path) for path in bundles]
    first = Bundle.open(reference) if reference is not None else None
    with output.show_progress("Comparing") as progress:
        trade = compare_bundles(opened, options, progress, reference=first)
    output.show(describe_trade_off(trade))
    output.suggest_next("validate", bundles[-1])
    return trade
