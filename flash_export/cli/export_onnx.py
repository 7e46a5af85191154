"""``flash-export onnx``: checkpoint to bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flash_export.cli.options import format_bytes, parse_config
from flash_export.config import (
    DEFAULT_MAX_BATCH,
    DEFAULT_MAX_SEQ_LEN,
    DEFAULT_OPSET,
    ISLAND_MODES,
    MAX_OPSET,
    MIN_OPSET,
    PRECISIONS,
    ExportOptions,
)

if TYPE_CHECKING:
    from flash_export.bundle import Bundle


@click.command("onnx")
@click.argument("checkpoint", type=click.Path())
@click.option("-o", "--output", type=click.Path(), required=True, help="Bundle folder to create.")
@click.option("--family", help="Model family of a weights file: flash or gau. Folders tell it themselves.")
@click.option("--config", "config_file", type=click.Path(), help="JSON file with what weights cannot tell.")
@click.option(
    "--set",
    "assignments",
    metavar="NAME=VALUE",
    multiple=True,
    help="One config value; overrides --config. Repeatable.",
)
@click.option("--library-version", metavar="VERSION", help="Release of flash-pytorch that made a weights file.")
@click.option("--weights-key", metavar="KEY", help="Which weights of a file that holds several, such as model_ema.")
@click.option("--assume-defaults", is_flag=True, help="Take flash-pytorch's defaults for what weights do not tell.")
@click.option(
    "--opset",
    type=click.IntRange(MIN_OPSET, MAX_OPSET),
    default=DEFAULT_OPSET,
    show_default=True,
    help="ai.onnx opset.",
)
@click.option("--max-seq-len", type=int, default=DEFAULT_MAX_SEQ_LEN, show_default=True, help="Longest sequence.")
@click.option("--max-batch", type=int, default=DEFAULT_MAX_BATCH, show_default=True, help="Largest batch.")
@click.option("--batch", type=int, help="The one batch to take, in place of any up to --max-batch.")
@click.option(
    "--graphs",
    metavar="NAME,...",
    help="forward, and for causal models prefill and decode, which carry the past in a state.  [default: all]",
)
@click.option("--mask/--no-mask", default=None, help="Take attention_mask. Default: only if padding would matter.")
@click.option(
    "--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True, help="Of weights and products."
)
@click.option(
    "--islands",
    type=click.Choice(ISLAND_MODES),
    default="auto",
    show_default=True,
    help="What stays fp32 in half precision: auto adds what would overflow within --max-seq-len to the minimum.",
)
@click.option("--force", is_flag=True, help="Replace a bundle that is there, with its engines and reports.")
def onnx_command(
    checkpoint: str,
    output: str,
    family: str | None,
    config_file: str | None,
    assignments: tuple[str, ...],
    library_version: str | None,
    weights_key: str | None,
    assume_defaults: bool,
    opset: int,
    max_seq_len: int,
    max_batch: int,
    batch: int | None,
    graphs: str | None,
    mask: bool | None,
    precision: str,
    islands: str,
    force: bool,
) -> None:
    """Export CHECKPOINT as a bundle: ONNX graphs, weights, manifest.

    CHECKPOINT is a folder with config.json and model.safetensors, or a weights file of flash-pytorch (.pt, .pth,
    .bin, .ckpt, .safetensors, or the .index.json of several) with --family and that library's constructor arguments.

    \b
    Examples:
      flash-export onnx my-model/ -o bundle/
      flash-export onnx model.pt -o bundle/ --family flash --set causal=true --set group_size=256 --assume-defaults
      flash-export onnx model.pt -o bundle/ --family flash --config arguments.json --opset 18 --max-seq-len 8192
      flash-export onnx my-model/ -o bundle/ --graphs forward --batch 1
      flash-export onnx my-model/ -o bundle/ --precision fp16 --max-seq-len 16384
    """
    options = ExportOptions(
        opset=opset,
        max_seq_len=max_seq_len,
        max_batch=max_batch,
        mask=mask,
        batch=batch,
        graphs=tuple(name.strip() for name in graphs.split(",")) if graphs else (),
        precision=precision,
        islands=islands,
    )
    config = parse_config(config_file, assignments)

    from rich.console import Console

    console = Console(stderr=True)
    with console.status("Loading PyTorch ..."):
        from flash_export.exporters.export import export_onnx
    with console.status("Starting ...") as status:
        bundle = export_onnx(
            checkpoint,
            output,
            options=options,
            family=family,
            config=config,
            library_version=library_version,
            weights_key=weights_key,
            assume_defaults=assume_defaults,
            force=force,
            on_stage=lambda stage: status.update(f"[{stage.index + 1}/{stage.total}] {stage.text} ..."),
        )
    print_bundle(bundle)


def print_bundle(bundle: Bundle) -> None:
    """Print what an export made."""
    from flash_export.cli.inspect_path import format_import
    from flash_export.exporters.analysis import analyse_graph

    graph = bundle.get_graph()
    analysis = analyse_graph(bundle.get_graph_path())
    sizes = [(bundle.path / name).stat().st_size for name in bundle.manifest.files]
    nodes = sorted(set(analysis.nodes_by_block.values()))
    click.echo(f"Exported {bundle.manifest.checkpoint['source']} to {bundle.path} ({format_bytes(sum(sizes))})")
    config = bundle.read_config()
    fields = [f"{name} {value}" for name, value in config.items() if name != "model_type"]
    click.echo(f"  {'model':<8}{', '.join([config['model_type'], *fields])}")
    for label, text in format_import(bundle.manifest.imported):
        click.echo(f"  {label:<8}{text}")
    if (facts := bundle.manifest.model) and facts.state_bytes:
        graphs = ", ".join(bundle.manifest.graphs)
        click.echo(f"  {'graphs':<8}{graphs}, with a state of {format_bytes(facts.state_bytes)} a row at any length")
    for name, values in (("inputs", analysis.inputs), ("outputs", analysis.outputs)):
        click.echo(f"  {name:<8}{', '.join(values)}")
    click.echo(f"  {'ranges':<8}{', '.join(f'{name} {axis.min} to {axis.max}' for name, axis in graph.axes.items())}")
    if bundle.manifest.precision:
        from flash_export.cli.inspect_path import format_precision

        for line in format_precision(bundle.manifest.precision):
            click.echo(f"  {line[:10].strip():<8}{line[10:]}")
    click.echo(
        f"  {'graph':<8}opset {analysis.opset}, {graph.precision}, {analysis.num_nodes} nodes, "
        f"{' or '.join(map(str, nodes))} in each of {len(analysis.nodes_by_block)} blocks"
    )
