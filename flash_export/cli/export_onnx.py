"""``flash-export onnx``: checkpoint to bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flash_export.cli.options import REPORT, Choice, output_options, parse_config
from flash_export.config import (
    ATTENTION_OPSET,
    DEFAULT_MAX_BATCH,
    DEFAULT_MAX_SECONDS,
    DEFAULT_MAX_SEQ_LEN,
    DEFAULT_OPSET,
    FORWARD,
    ISLAND_MODES,
    MAX_OPSET,
    MIN_OPSET,
    PRECISIONS,
    ExportOptions,
)
from flash_export.formatting import format_bytes
from flash_export.report.document import Document, Pairs, Section

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from flash_export.bundle.bundle import Bundle
    from flash_export.cli.output import Output
    from flash_export.exporters.inspection import Inspection


@click.command("onnx", short_help="Export a checkpoint as a bundle of ONNX graphs.")
@click.argument("checkpoint", type=click.Path())
@click.option("-o", "--output", "target", type=click.Path(), required=True, help="Bundle folder to create.")
@click.option("--family", help="Model family, where the names of tensors do not tell it; see families.")
@click.option("--config", "config_file", type=click.Path(), help="JSON file with what weights cannot tell.")
@click.option(
    "--set",
    "assignments",
    metavar="NAME=VALUE",
    multiple=True,
    help="One config value; overrides --config. Repeatable.",
)
@click.option("--library-version", metavar="VERSION", help="Release of the library that made a weights file.")
@click.option("--weights-key", metavar="KEY", help="Which weights of a file that holds several, such as model_ema.")
@click.option("--assume-defaults", is_flag=True, help="Take the library's defaults for what weights do not tell.")
@click.option(
    "--opset",
    type=click.IntRange(MIN_OPSET, MAX_OPSET),
    default=DEFAULT_OPSET,
    show_default=True,
    help=f"ai.onnx opset; from {ATTENTION_OPSET} on, a Transformer's attention is one operator.",
)
@click.option(
    "--max-seq-len",
    type=int,
    help=f"Longest sequence.  [default: {DEFAULT_MAX_SEQ_LEN}, of a waveform {DEFAULT_MAX_SECONDS} seconds, or the "
    "longest of the model]",
)
@click.option("--max-batch", type=int, default=DEFAULT_MAX_BATCH, show_default=True, help="Largest batch.")
@click.option("--batch", type=int, help="The one batch to take, in place of any up to --max-batch.")
@click.option(
    "--graphs",
    metavar="NAME,...",
    help="forward, and for causal models prefill, extend and decode, which carry the past in a state.  [default: all]",
)
@click.option("--mask/--no-mask", default=None, help="Take attention_mask. Default: only if padding would matter.")
@click.option("--waveform", is_flag=True, help="From waveform to waveform, where the model takes features of one.")
@click.option(
    "--precision", type=Choice(PRECISIONS), default="fp32", show_default=True, help="Of weights and products."
)
@click.option(
    "--islands",
    type=Choice(ISLAND_MODES),
    default="auto",
    show_default=True,
    help="What stays fp32 in half precision: auto adds what would overflow within --max-seq-len to the minimum.",
)
@click.option(
    "--heldout",
    "heldout_file",
    type=click.Path(),
    metavar="FILE",
    help="Data to judge the model by: text (bytes), token ids as .npy, or inputs as .npz. Default: the checkpoint's.",
)
@click.option("--force", is_flag=True, help="Replace a bundle that is there, with its engines and reports.")
@output_options(*REPORT)
def onnx_command(
    output: Output,
    checkpoint: str,
    target: str,
    family: str | None,
    config_file: str | None,
    assignments: tuple[str, ...],
    library_version: str | None,
    weights_key: str | None,
    assume_defaults: bool,
    opset: int,
    max_seq_len: int | None,
    max_batch: int,
    batch: int | None,
    graphs: str | None,
    mask: bool | None,
    waveform: bool,
    precision: str,
    islands: str,
    heldout_file: str | None,
    force: bool,
) -> Inspection:
    """Export CHECKPOINT as a bundle: ONNX graphs, weights, manifest.

    CHECKPOINT is a folder with config.json and model.safetensors; or a weights file of another library (.pt, .pth,
    .bin, .ckpt, .safetensors, or the .index.json of several) with that library's constructor arguments; or a folder
    that transformers saved; or hf://ORG/NAME[@REVISION][/FILE] on the Hugging Face Hub.

    \b
    Examples:
      flash-export onnx MODEL -o BUNDLE
      flash-export onnx model.pt -o BUNDLE --config arguments.json
      flash-export onnx model.pt -o BUNDLE --assume-defaults
      flash-export onnx hf://ORG/NAME@v1.0 -o BUNDLE
      flash-export onnx MODEL -o BUNDLE --opset 18 --max-seq-len 8192
      flash-export onnx MODEL -o BUNDLE --graphs forward --batch 1
      flash-export onnx MODEL -o BUNDLE --precision fp16 --max-seq-len 16384
      flash-export onnx MODEL -o BUNDLE --heldout text.txt
      flash-export onnx MossFormer2_SE_48K -o BUNDLE --assume-defaults --waveform
    """
    options = ExportOptions(
        opset=opset,
        max_seq_len=max_seq_len,
        max_batch=max_batch,
        mask=mask,
        waveform=waveform,
        batch=batch,
        graphs=tuple(name.strip() for name in graphs.split(",")) if graphs else (),
        precision=precision,
        islands=islands,
    )
    config = parse_config(config_file, assignments)

    with output.show_progress("Exporting") as progress:
        from flash_export.exporters.export import export_onnx
        from flash_export.exporters.inspection import inspect_bundle

        bundle = export_onnx(
            checkpoint,
            target,
            options=options,
            family=family,
            config=config,
            library_version=library_version,
            weights_key=weights_key,
            assume_defaults=assume_defaults,
            heldout_file=heldout_file,
            force=force,
            progress=progress,
        )
        inspection = inspect_bundle(bundle)
    output.show(describe_export(bundle, inspection))
    output.suggest_next("validate", bundle.path)
    return inspection


def describe_export(bundle: Bundle, inspection: Inspection) -> Document:
    """Return the report of what an export made."""
    from flash_export.cli.inspect_path import (
        count_nodes,
        format_attention,
        format_import,
        format_precision,
        format_ranges,
        format_state,
        join_values,
    )

    manifest, graph, analysis = bundle.manifest, bundle.get_graph(), inspection.graphs[FORWARD]
    size = sum((bundle.path / name).stat().st_size for name in manifest.files)
    config = bundle.read_config()
    pairs = [
        ("model", ", ".join([config.pop("model_type"), *_list_fields(config)])),
        *format_import(manifest.imported),
    ]
    if (facts := manifest.model) and facts.state_bytes:
        state = f"with a state of {format_state(facts)}"
        pairs.append(("graphs", f"{', '.join(manifest.graphs)}, {state}"))
    pairs += [
        ("inputs", join_values(analysis.inputs)),
        ("outputs", join_values(analysis.outputs)),
        ("ranges", format_ranges(graph)),
        *(format_precision(manifest.precision, manifest.interface.unit) if manifest.precision else ()),
        ("nodes", f"{count_nodes(analysis)}; opset {analysis.opset}, {graph.label}{format_attention(graph)}"),
    ]
    return Document(
        f"Exported {manifest.checkpoint['source']} to {bundle.path} ({format_bytes(size)})",
        "flash-export onnx",
        sections=(Section("", Pairs(tuple(pairs))),),
    )


def _list_fields(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _list_fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name} {value}"
