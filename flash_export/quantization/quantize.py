"""From a bundle to a quantized one: calibrate, measure, choose, export."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from flash_export.bundle.bundle import MANIFEST_FILE, reads_bundles
from flash_export.bundle.quantization_record import FP32, ProductRecord, QuantizationRecord
from flash_export.config import FORWARD, ExportOptions, QuantizeOptions
from flash_export.errors import ConfigError
from flash_export.exporters.output import check_output
from flash_export.exporters.quantization.bundle import describe_quantized, write_quantized
from flash_export.exporters.quantization.schemes.registry import SCHEMES_BY_NAME
from flash_export.exporters.quantization.source import SourceGraph
from flash_export.files import hash_file
from flash_export.progress import Steps
from flash_export.quantization.activations import list_lengths, record_activations, skip_activations
from flash_export.quantization.calibration import read_calibration
from flash_export.quantization.loss import Judge
from flash_export.quantization.search import Candidate, Search
from flash_export.suggest import list_known
from flash_export.temporary import create_temporary_folder

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle
    from flash_export.exporters.quantization.rounding import Rounding
    from flash_export.progress import ProgressCallback
    from flash_export.quantization.calibration import Calibration
    from flash_export.quantization.search import Choice


# Read, all of them together, write, besides one per product; what the search adds is counted as it comes.
_OTHER_STEPS = 3


@reads_bundles
def quantize_bundle(
    bundle: Bundle,
    output: str | Path,
    *,
    options: QuantizeOptions | None = None,
    force: bool = False,
    progress: ProgressCallback | None = None,
) -> Bundle:
    """Write a bundle of the same model whose graphs compute in few bits.

    Where the scheme has to know ranges of activations, they are measured on the data, and each product is rounded in
    the way that changes its result least. Those that cost most stay fp32 until the loss is within the budget.
    ``quantization.json`` in the new bundle says all of it.

    Args:
        bundle: An fp32 bundle.
        output: Folder to create.
        options: What to do; None: int8-token, judged on the bundle's held-out data, or on random inputs if it has none.
        force: Replace a bundle that is there, with its engines and reports.
        progress: Called before each step.

    Returns:
        The new bundle, opened and checked.

    Raises:
        ConfigError: The bundle is not fp32 or its own output, a pattern names nothing, or nothing can be quantized
            within the budget.
        InputError: The data cannot be used, or there is none to calibrate with.
        BundleError: ``output`` cannot be written; it is then as it was before.
    """
    options = options or QuantizeOptions()
    graph = bundle.get_graph()
    if graph.precision != "fp32":
        raise ConfigError(f"{bundle.path} is {graph.precision}; quantize the fp32 bundle that it was made from")
    if Path(output).resolve() == bundle.path.resolve():
        raise ConfigError(f"{output} is the bundle itself, which would be lost; choose another folder")
    check_output(Path(output), force=force)
    scheme, longest = SCHEMES_BY_NAME[options.scheme], graph.axes["seq"].max
    data = read_calibration(bundle, options.data, longest, may_draw=not scheme.reads_activations)
    other_steps = _OTHER_STEPS + scheme.reads_activations + (options.precision != "fp32")
    steps = Steps(progress, other_steps)

    steps.begin("reading the graph")
    exact = SourceGraph.read(bundle.get_graph_path(), describe_quantized(bundle, scheme)[FORWARD])
    sizes = {product.name: product.weight.size for product in exact.products}
    kept = _match(options.keep, list(sizes))
    steps.total = other_steps + len(sizes)
    with create_temporary_folder() as folder:
        path = exact.write(folder)
        seq_lens: list[int] = []
        if scheme.reads_activations and data.rows is not None:
            steps.begin("ranges of the activations")
            widest = 4 * sum(len(product.weight) for product in exact.products)
            seq_lens = list_lengths(data.rows, longest, widest)
            samples = record_activations(exact, path, data.rows, seq_lens, options.threads)
        else:
            samples = skip_activations(exact)
        # A sample keeps its exact product, which is not to stay in memory for all of them.
        ladders = {name: scheme.list_roundings(samples.pop(name), options) for name in sizes}
        for product in exact.products:
            if not ladders[product.name]:
                reason = f"its {len(product.weight)} inputs are no multiple of the block of {options.block_size}"
                kept.setdefault(product.name, reason)
        base, source = bundle, exact
        if options.precision != "fp32":
            steps.begin(f"exporting in {options.precision}")
            base = _export_half(bundle, folder / options.precision, options.precision)
            source = SourceGraph.read(base.get_graph_path(), describe_quantized(base, scheme)[FORWARD], exact)
        interface = bundle.manifest.interface
        judge = Judge(interface, graph, path, data.samples, options.threads, variant=source.graph)
        candidates = tuple(
            Candidate(name, weights, tuple(rounding.recipe for rounding in ladders[name]))
            for name, weights in sizes.items()
            if name not in kept
        )
        if not candidates:
            name, reason = next(iter(kept.items()))
            raise ConfigError(
                f"nothing of {bundle.path} can be {options.scheme} ({name}: {reason}); take --keep back, or choose "
                "another --block-size or --scheme"
            )
        choice = Search(source, judge, scheme, steps.begin).run(candidates, options.accepted_loss)
        if not choice.recipe.products:
            least = min(choice.sensitivity.values())
            raise ConfigError(
                f"budget={options.accepted_loss:g} leaves no product in {options.scheme}: in the cheapest way each "
                f"alone loses at least {least:.2g}; raise --budget, or choose another --scheme"
            )
        record = _record(bundle, options, data, seq_lens, sizes, ladders, kept, choice)
        steps.begin("writing")
        return write_quantized(base, Path(output), choice.recipe, record.to_json(), exact=exact, force=force)


def _export_half(bundle: Bundle, folder: Path, precision: str) -> Bundle:
    """Export the model of an fp32 bundle again in half precision, with the same graphs and limits."""
    from flash_export.exporters.export import export_onnx

    graph = bundle.get_graph()
    batch = graph.axes["batch"]
    options = ExportOptions(
        opset=graph.opset,
        max_seq_len=graph.axes["seq"].max,
        max_batch=batch.max,
        mask=graph.has_mask,
        batch=batch.max if batch.min == batch.max else None,
        graphs=tuple(bundle.manifest.graphs),
        precision=precision,
    )
    return export_onnx(bundle.path, folder, options=options)


def _match(patterns: tuple[str, ...], names: list[str]) -> dict[str, str]:
    """Return why what the patterns name stays fp32.

    Raises:
        ConfigError: A pattern names nothing.
    """
    kept: dict[str, str] = {}
    for pattern in patterns:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            raise ConfigError(f"keep={pattern!r} names nothing; the products are {list_known(pattern, names)}")
        kept |= dict.fromkeys(matching, f"--keep {pattern}")
    return kept


def _record(
    bundle: Bundle,
    options: QuantizeOptions,
    data: Calibration,
    seq_lens: list[int],
    sizes: dict[str, int],
    ladders: dict[str, tuple[Rounding, ...]],
    kept: dict[str, str],
    choice: Choice,
) -> QuantizationRecord:
    products = []
    for name, weights in sizes.items():
        ladder, rung = ladders[name], choice.rungs.get(name, 0)
        sensitivity = choice.sensitivity.get(name, math.inf)
        rounding = None if name in kept or rung == len(ladder) else ladder[rung]
        products.append(
            ProductRecord(
                name,
                options.scheme if rounding else FP32,
                weights,
                sensitivity if math.isfinite(sensitivity) else None,  # JSON has no infinity
                terms=rounding.recipe.terms if rounding else 1,
                error=rounding.error if rounding and math.isfinite(rounding.error) else None,
                activation_max=rounding.recipe.activation_max if rounding else None,
                smoothing_strength=rounding.strength if rounding else 0.0,
                reason=kept.get(name) or choice.reasons.get(name),
            )
        )
    loss = choice.loss
    return QuantizationRecord(
        scheme=options.scheme,
        source_sha256=hash_file(bundle.path / MANIFEST_FILE),
        data=data.label,
        data_sha256=data.sha256,
        seq_lens=tuple(seq_lens),
        predictions=sum(int(sample.counted.sum()) for sample in data.samples),
        budget=options.accepted_loss,
        loss=loss.share,
        measures=loss.measures,
        score=loss.score,
        reference_score=loss.reference_score,
        block_size=options.block_size if SCHEMES_BY_NAME[options.scheme].has_blocks else None,
        products=tuple(products),
    )
