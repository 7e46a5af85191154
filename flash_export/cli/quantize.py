"""``flash-export quantize``: an fp32 bundle to one that computes in few bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flash_export.cli.options import show_progress
from flash_export.config import HELDOUT, INT8, SCHEMES, QuantizeOptions
from flash_export.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from flash_export.bundle import Bundle
    from flash_export.quantization_record import ProductRecord, QuantizationRecord


@click.command("quantize")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Bundle folder to create.")
@click.option("--scheme", type=click.Choice(SCHEMES), default=INT8, show_default=True, help="What to compute in.")
@click.option(
    "--calibration",
    metavar="FILE",
    default=HELDOUT,
    show_default=True,
    help="Text (for models of bytes) or token ids as .npy that the model would see in use; heldout: the bundle's own.",
)
@click.option("--keep", metavar="PATTERN", multiple=True, help="What stays fp32, such as 'layers.0.*'. Repeatable.")
@click.option(
    "--budget",
    metavar="SHARE",
    help="Accepted loss, a share of bits and logits, such as 0.5%.  [default: 0.5%; 2% for int4]",
)
@click.option("--block-size", type=int, default=32, show_default=True, help="int4: inputs that share a scale.")
@click.option("--smoothing/--no-smoothing", default=True, help="Move outliers of activations into weights (default).")
@click.option("--threads", type=int, help="CPU threads of one operator.")
@click.option("--force", is_flag=True, help="Replace a bundle that is there, with its engines and reports.")
def quantize_command(
    bundle: Path,
    output: Path,
    scheme: str,
    calibration: str,
    keep: tuple[str, ...],
    budget: str | None,
    block_size: int,
    smoothing: bool,
    threads: int | None,
    force: bool,
) -> None:
    """Write BUNDLE, an fp32 one, again with graphs that compute in few bits.

    int8: weights and activations, for CPUs and GPUs; int8-dynamic: scales of the activations measured in every run, for
    onnxruntime; int4: weights alone, for decoding; fp8: for GPUs. Each product of the model is measured, and those that
    cost most are computed in a dearer way, in the end in fp32, until the loss is within the budget.

    \b
    Examples:
      flash-export quantize BUNDLE -o BUNDLE-int8
      flash-export quantize BUNDLE -o BUNDLE-int4 --scheme int4 --budget 1%
      flash-export quantize BUNDLE -o BUNDLE-int8 --calibration text.txt --keep head --keep 'layers.0.*'
    """
    from rich.console import Console

    from flash_export.bundle import Bundle
    from flash_export.quantization.quantize import quantize_bundle

    options = QuantizeOptions(
        scheme, calibration, keep, None if budget is None else parse_share(budget), block_size, smoothing, threads
    )
    with show_progress(Console(stderr=True), "Quantizing") as progress:
        quantized = quantize_bundle(Bundle.open(bundle), output, options=options, force=force, progress=progress)
    record = quantized.read_quantization()
    assert record is not None
    print_record(quantized, record, Console())


def parse_share(text: str) -> float:
    """Return a share written as ``0.5%`` or ``0.005``.

    Raises:
        ConfigError: It is neither.
    """
    number, percent, rest = text.strip().partition("%")
    try:
        return float(number) / 100 if percent and not rest else float(text)
    except ValueError:
        raise ConfigError(f"budget={text!r} is not a share; write it like 0.5% or 0.005") from None


def print_record(bundle: Bundle, record: QuantizationRecord, console: Console) -> None:
    """Print what was done and why."""
    from rich.table import Table

    from flash_export.tasks.registry import get_task

    title = f"{record.scheme}, by {record.predictions:,} predictions on {record.data}"
    table = Table(title=title, title_justify="left")
    for column in ("product", "computed in"):
        table.add_column(column, no_wrap=True)
    for column in ("weights", "alone it loses"):
        table.add_column(column, no_wrap=True, justify="right")
    for product in record.products:
        cost = "" if product.sensitivity is None else f"{product.sensitivity:.3%}"
        table.add_row(product.name, describe_product(product), f"{product.weights:,}", cost)
    console.print(table)
    for product in record.products:
        if product.reason is not None:
            console.print(f"{product.name}: {describe_product(product)}, because {product.reason}", highlight=False)
    scores = ""
    if record.score is not None:
        label = get_task(bundle.manifest.interface.task).describe_score(bundle.manifest.interface).label
        scores = f": {record.score:.4f} {label}, fp32 {record.reference_score:.4f}"
    console.print(f"Loss {record.loss:.2%}, accepted {record.budget:.2%}{scores}")
    console.print(f"{record.quantized_share:.0%} of the weights in few bits")
    console.print(f"Bundle: {bundle.path}", highlight=False)


def describe_product(product: ProductRecord) -> str:
    """Say how a product is computed."""
    smoothed = ", smoothed" if product.smoothing_strength else ""
    return f"{product.scheme}{' in two terms' if product.terms > 1 else ''}{smoothed}"
