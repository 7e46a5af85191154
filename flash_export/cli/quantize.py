"""``flash-export quantize``: an fp32 bundle to one that computes in few bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flash_export.cli.options import REPORT, Choice, output_options
from flash_export.config import DEFAULT_SCHEME, SCHEMES, QuantizeOptions
from flash_export.errors import ConfigError
from flash_export.report.document import Document, Fact, Section, number, tabulate, text

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle
    from flash_export.bundle.quantization_record import ProductRecord, QuantizationRecord
    from flash_export.cli.output import Output


@click.command("quantize", short_help="Write a bundle again in int8, int4 or fp8.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "target", type=click.Path(path_type=Path), required=True, help="Bundle folder to create."
)
@click.option("--scheme", type=Choice(SCHEMES), default=DEFAULT_SCHEME, show_default=True, help="What to compute in.")
@click.option(
    "--data",
    "--calibration",
    "data",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Data that the model would see in use, to calibrate with.  [default: the bundle's held-out data]",
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
@output_options(*REPORT)
def quantize_command(
    output: Output,
    bundle: Path,
    target: Path,
    scheme: str,
    data: Path | None,
    keep: tuple[str, ...],
    budget: str | None,
    block_size: int,
    smoothing: bool,
    threads: int | None,
    force: bool,
) -> QuantizationRecord:
    """Write BUNDLE, an fp32 one, again with graphs that compute in few bits.

    int8: weights and activations, for CPUs and GPUs; int8-dynamic: scales of the activations measured in every run, for
    onnxruntime; int4: weights alone, for decoding; fp8: for GPUs. Each product of the model is measured, and those that
    cost most are computed in a dearer way, in the end in fp32, until the loss is within the budget.

    \b
    Examples:
      flash-export quantize BUNDLE -o BUNDLE-int8
      flash-export quantize BUNDLE -o BUNDLE-int4 --scheme int4 --budget 1%
      flash-export quantize BUNDLE -o OUT --data a.txt --keep 'layers.0.*'
    """
    from flash_export.bundle.bundle import Bundle
    from flash_export.quantization.quantize import quantize_bundle

    options = QuantizeOptions(
        scheme, data, keep, None if budget is None else parse_share(budget), block_size, smoothing, threads
    )
    with output.show_progress("Quantizing") as progress:
        quantized = quantize_bundle(Bundle.open(bundle), target, options=options, force=force, progress=progress)
    record = quantized.read_quantization()
    assert record is not None
    output.show(describe_quantization(quantized, record))
    output.suggest_next("validate", target)
    return record


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


def describe_quantization(bundle: Bundle, record: QuantizationRecord) -> Document:
    """Return the report of a quantization: what was done to each product, and why."""
    from flash_export.tasks.registry import get_task

    scores = ""
    if record.score is not None:
        label = get_task(bundle.manifest.interface.task).describe_score(bundle.manifest.interface).label
        scores = f"{record.score:.4f} {label}, fp32 {record.reference_score:.4f}"
    return Document(
        subject=f"Quantization to {bundle.path}: {record.scheme}",
        command="flash-export quantize",
        lead=f"Judged by {record.predictions:,} predictions on {record.data}.",
        facts=(
            Fact("Loss", f"{record.loss:.2%}, accepted {record.budget:.2%}", scores),
            Fact("In few bits", f"{record.quantized_share:.0%} of the weights"),
        ),
        sections=(
            Section(
                "Products",
                tabulate(
                    record.products,
                    [
                        (text("product"), lambda product: product.name),
                        (text("computed in"), describe_product),
                        (number("weights"), lambda product: f"{product.weights:,}"),
                        (
                            number("alone it loses"),
                            lambda product: None if product.sensitivity is None else f"{product.sensitivity:.3%}",
                        ),
                    ],
                    lambda product: product.reason and f"{describe_product(product)}, because {product.reason}",
                ),
            ),
        ),
    )


def describe_product(product: ProductRecord) -> str:
    """Say how a product is computed."""
    smoothed = ", smoothed" if product.smoothing_strength else ""
    return f"{product.scheme}{' in two terms' if product.terms > 1 else ''}{smoothed}"
