"""``flash-export quantize``: an fp32 bundle to one that computes in few bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flash_export.cli.options import REPORT, Choice, output_options, refuse_ignored
from flash_export.config import DEFAULT_RUNTIME, SCHEMES, SCHEMES_BY_RUNTIME, QuantizeOptions
from flash_export.errors import ConfigError
from flash_export.limits import refuse_retired
from flash_export.report.document import Document, Fact, Section, number, tabulate, text

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle
    from flash_export.bundle.quantization_record import ProductRecord, QuantizationRecord
    from flash_export.cli.output import Output


class SchemeChoice(Choice):
    """A scheme; one that is retired is answered with what took its place."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the name."""
        refuse_retired(value)
        return super().convert(value, param, ctx)


@click.command("quantize", short_help="Write a bundle again in int8, int4 or fp8.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "target", type=click.Path(path_type=Path), required=True, help="Bundle folder to create."
)
@click.option(
    "--for",
    "runtime",
    type=Choice(tuple(SCHEMES_BY_RUNTIME)),
    default=DEFAULT_RUNTIME,
    show_default=True,
    help="What is to run it: chooses the scheme.",
)
@click.option("--scheme", type=SchemeChoice(SCHEMES), help="What to compute in.  [default: as --for says]")
@click.option(
    "--data",
    "--calibration",
    "data",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Data that the model would see in use, to calibrate and judge with.  [default: the bundle's held-out data]",
)
@click.option("--keep", metavar="PATTERN", multiple=True, help="What stays fp32, such as 'layers.0.*'. Repeatable.")
@click.option(
    "--budget",
    metavar="SHARE",
    help="Accepted loss, a share of bits and logits, such as 0.5%.  [default: 0.5%; 2% for int4]",
)
@click.option("--block-size", type=int, default=32, show_default=True, help="int4: inputs that share a scale.")
@click.option("--smoothing/--no-smoothing", default=True, help="int8: move outliers into weights (default).")
@click.option(
    "--precision",
    type=Choice(("fp32", "bf16")),
    default="fp32",
    show_default=True,
    help="int8: what is computed in that is not quantized.",
)
@click.option("--threads", type=int, help="CPU threads of one operator.")
@click.option("--force", is_flag=True, help="Replace a bundle that is there, with its engines and reports.")
@output_options(*REPORT)
def quantize_command(
    output: Output,
    bundle: Path,
    target: Path,
    runtime: str,
    scheme: str | None,
    data: Path | None,
    keep: tuple[str, ...],
    budget: str | None,
    block_size: int,
    smoothing: bool,
    precision: str,
    threads: int | None,
    force: bool,
) -> QuantizationRecord:
    """Write BUNDLE, an fp32 one, again with graphs that compute in few bits.

    \b
    --for       scheme       weights, activations
    ort-cpu     int8-token   int8, int8 with a scale for each token; needs no data
    openvino    int8         int8, int8 with scales that are measured on data
    tensorrt    int8         the same
                int4         int4 in blocks, fp32: where size counts, for decoding
                fp8          float8, float8: for GPUs from Ada on

    Each product of the model is measured, and those that cost most are computed in a dearer way, in the end in fp32,
    until the loss is within the budget.

    \b
    Examples:
      flash-export quantize BUNDLE -o BUNDLE-int8
      flash-export quantize BUNDLE -o BUNDLE-int8 --for openvino
      flash-export quantize BUNDLE -o OUT --for openvino --precision bf16
      flash-export quantize BUNDLE -o BUNDLE-int4 --scheme int4 --budget 1%
      flash-export quantize BUNDLE -o OUT --data a.txt --keep 'layers.0.*'
    """
    from flash_export.bundle.bundle import Bundle
    from flash_export.quantization.quantize import quantize_bundle

    if scheme is not None:
        refuse_ignored(["runtime"], "--scheme says what to compute in")
    options = QuantizeOptions(
        scheme or SCHEMES_BY_RUNTIME[runtime],
        data,
        keep,
        None if budget is None else parse_share(budget),
        block_size,
        smoothing,
        threads,
        precision,
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
    from flash_export.data.sources import RandomSource
    from flash_export.tasks.registry import get_task

    interface = bundle.manifest.interface
    lead = f"Judged by {record.predictions:,} predictions on {record.data}."
    if record.data == RandomSource(interface).label:
        lead += " The bundle has no data that tells more; give what the model would see in use with --data FILE."
    scores = ""
    if record.score is not None:
        label = get_task(interface.task).describe_score(interface).label
        scores = f"{record.score:.4f} {label}, fp32 {record.reference_score:.4f}"
    return Document(
        subject=f"Quantization to {bundle.path}: {bundle.get_graph().label}",
        command="flash-export quantize",
        lead=lead,
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
