"""``flash-export inspect``: what is in a bundle, a graph or an engine."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import click

from flash_export.cli.options import format_bytes
from flash_export.manifest import NEW_STATE_PREFIX, STATE_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flash_export.exporters.analysis import GraphAnalysis
    from flash_export.exporters.inspection import Inspection
    from flash_export.interface import TensorSpec
    from flash_export.manifest import EngineManifest, Manifest, PrecisionFacts, ProfileShapes
    from flash_export.quantization_record import QuantizationRecord


@click.command("inspect")
@click.argument("path", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def inspect_command(path: str, as_json: bool) -> None:
    """Show inputs, outputs, axes, operators, nodes a block, parameters and work a token of PATH.

    PATH is a bundle folder, an .onnx file, or an engine in a bundle's engines folder. Hashes are checked.

    \b
    Examples:
      flash-export inspect bundle/
      flash-export inspect bundle/model.onnx
      flash-export inspect bundle/engines/forward.engine --json
    """
    from flash_export.exporters.inspection import inspect_path

    inspection = inspect_path(path)
    if as_json:
        click.echo(json.dumps(inspection.to_dict(), indent=2))
        return
    click.echo(f"{inspection.kind} {inspection.path}")
    for line in format_inspection(inspection):
        click.echo(f"  {line}")


def format_inspection(inspection: Inspection) -> Iterator[str]:
    """Yield the lines of the text form."""
    if inspection.manifest:
        yield from _format_manifest(inspection.manifest)
    if inspection.quantization:
        yield _format_quantization(inspection.quantization)
    for name, analysis in inspection.graphs.items():
        yield f"graph {name}"
        yield from (f"  {line}" for line in _format_graph(analysis))
    for engine in inspection.engines:
        yield f"engine {engine.name}"
        yield from (f"  {line}" for line in _format_engine(engine))
    if inspection.manifest and not inspection.engines:
        yield "no engine yet; build one with 'flash-export trt'"


def _format_manifest(manifest: Manifest) -> Iterator[str]:
    checkpoint = manifest.checkpoint
    yield f"from      {checkpoint['source']} ({checkpoint['format']}, sha256 {checkpoint['sha256'][:12]}...)"
    if model := manifest.model:
        yield f"model     {model.model_type}, {model.num_parameters:,} parameters, {model.num_blocks} blocks"
        work = ", ".join(f"{flops:,} at {seq_len} tokens" for seq_len, flops in model.flops_per_token.items())
        yield f"FLOPs     a token: {work}"
        if model.state_bytes:
            yield f"state     {format_bytes(model.state_bytes)} a row, at any length"
    for name, graph in manifest.graphs.items():
        ranges = ", ".join(f"{axis} {bounds.min} to {bounds.max}" for axis, bounds in graph.axes.items())
        yield f"{name:<9} {graph.precision}, {ranges}"
    if manifest.precision:
        yield from format_precision(manifest.precision)
    yield f"made by   {', '.join(f'{name} {version}' for name, version in manifest.versions.items())}"
    yield f"files     {len(manifest.files)}, all with the sha256 that the manifest says"


def _format_quantization(record: QuantizationRecord) -> str:
    return (
        f"quantized {record.scheme}: {record.quantized_share:.0%} of the weights, loss {record.loss:.2%} of the bits, "
        f"accepted {record.budget:.2%}"
    )


def format_precision(facts: PrecisionFacts) -> Iterator[str]:
    """Yield the lines about a half-precision bundle: what is fp32 in it, and up to which length it holds."""
    names = [island.name for island in facts.islands]
    yield f"islands   {facts.mode}: {', '.join(names) if names else 'none beyond what is fp32 in every model'}"
    reasons = Counter(island.reason for island in facts.islands)
    for island in facts.islands:
        if reasons[island.reason] == 1:
            yield f"          {island.name} {island.reason}"
    if facts.precision == "fp16":
        read = f"{facts.data} of {', '.join(map(str, facts.seq_lens))} tokens"
        if facts.horizon is None:
            yield f"horizon   nothing grows towards an overflow; measured on {read}"
        else:
            yield (
                f"horizon   {facts.horizon.quantity} reaches a quarter of fp16's range at about "
                f"{facts.horizon.seq_len:,} tokens; measured on {read}"
            )


def _format_graph(analysis: GraphAnalysis) -> Iterator[str]:
    yield f"inputs    {_join_values(analysis.inputs)}"
    yield f"outputs   {_join_values(analysis.outputs)}"
    counts = sorted(set(analysis.nodes_by_block.values()))
    blocks = f", {' or '.join(map(str, counts))} in each of {len(analysis.nodes_by_block)} blocks" if counts else ""
    yield f"nodes     {analysis.num_nodes}{blocks}; opset {analysis.opset}; {analysis.producer}"
    yield f"operators {', '.join(f'{name} {count}' for name, count in analysis.operators.items())}"
    yield f"constants {analysis.num_parameters:,} numbers, {format_bytes(analysis.constant_bytes)}"


def _join_values(values: Sequence[str]) -> str:
    """Join descriptions of inputs or outputs; the many tensors of a state are counted."""
    plain = [value for value in values if not value.startswith((STATE_PREFIX, NEW_STATE_PREFIX))]
    state = [f"{len(values) - len(plain)} tensors of the state"] if len(plain) < len(values) else []
    return ", ".join([*plain, *state])


def _format_engine(engine: EngineManifest) -> Iterator[str]:
    targets = ", ".join(engine.targets)
    yield f"built     {engine.flavour} {engine.version} for {targets}, in {engine.build_seconds:.1f} s"
    for kind, specs in (("inputs", engine.inputs), ("outputs", engine.outputs)):
        yield f"{kind:<9} {_join_values(list(map(_format_spec, specs)))}"
    for index, profile in enumerate(engine.profiles):
        shown = {name: shapes for name, shapes in profile.items() if not name.startswith(STATE_PREFIX)}
        shapes = "; ".join(f"{name} {_format_shapes(shapes)}" for name, shapes in shown.items())
        yield f"profile {index} {shapes}"
    dtypes = ", ".join(f"{dtype} {count}" for dtype, count in engine.layer_dtypes.items())
    yield f"layers    {engine.num_layers} ({dtypes}), {format_bytes(engine.size_bytes)}"
    yield f"graph     {engine.graph}, sha256 {engine.graph_sha256[:12]}..."


def _format_spec(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} ({', '.join(map(str, spec.shape))})"


def _format_shapes(shapes: ProfileShapes) -> str:
    return ":".join("x".join(map(str, shape)) for shape in (shapes.min, shapes.opt, shapes.max))
