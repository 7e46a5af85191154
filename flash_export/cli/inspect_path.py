"""``flash-export inspect``: what is in a bundle, a graph or an engine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flash_export.bundle.manifest import METADATA_PREFIX, NEW_STATE_PREFIX, STATE_PREFIX
from flash_export.cli.options import REPORT, output_options
from flash_export.formatting import format_bytes
from flash_export.report.document import Document, Pairs, Section
from flash_export.report.terminal import NO_BREAK_SPACE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from flash_export.bundle.manifest import (
        EngineManifest,
        GraphSpec,
        Manifest,
        ModelFacts,
        PrecisionFacts,
        ProfileShapes,
    )
    from flash_export.bundle.quantization_record import QuantizationRecord
    from flash_export.cli.output import Output
    from flash_export.exporters.analysis import GraphAnalysis
    from flash_export.exporters.inspection import Inspection
    from flash_export.interface import TensorSpec
    from flash_export.models.import_record import ImportRecord

    Rows = Iterator[tuple[str, str]]


@click.command("inspect", short_help="Show what is in a bundle, a graph or an engine.")
@click.argument("path", type=click.Path(path_type=Path))
@output_options(*REPORT)
def inspect_command(output: Output, path: Path) -> Inspection:
    """Show inputs, outputs, axes, operators, nodes per block, parameters and work per token of PATH.

    PATH is a bundle folder, an .onnx file, or an engine in a bundle's engines folder. Hashes are checked.

    \b
    Examples:
      flash-export inspect BUNDLE
      flash-export inspect BUNDLE/model.onnx
      flash-export inspect BUNDLE/engines/forward.engine
      flash-export inspect BUNDLE --json - | jq .graphs.forward.operators
    """
    from flash_export.exporters.inspection import inspect_path

    inspection = inspect_path(path)
    output.show(describe_inspection(inspection))
    output.suggest_next(*_choose_next(inspection))
    return inspection


def describe_inspection(inspection: Inspection) -> Document:
    """Return the report of what is known about a path: a line a fact, by what it is about."""
    parts: list[tuple[str, Rows]] = []
    if inspection.manifest:
        parts.append(("", _list_manifest(inspection.manifest, inspection.quantization)))
    parts += [
        (f"graph {name}", _list_graph(analysis, is_alone=inspection.manifest is None))
        for name, analysis in inspection.graphs.items()
    ]
    parts += [(f"engine {engine.name}", _list_engine(engine)) for engine in inspection.engines]
    sections = tuple(Section(title, Pairs(tuple(pairs))) for title, pairs in parts)
    return Document(f"{inspection.kind} {inspection.path}", "flash-export inspect", sections=sections)


def _choose_next(inspection: Inspection) -> tuple[str | Path, ...]:
    if inspection.kind == "bundle":
        return ("validate", inspection.path) if inspection.engines else ("trt", inspection.path)
    if inspection.kind == "engine":
        return ("validate", inspection.path.resolve().parent.parent, "--backend", f"trt:{inspection.engines[0].name}")
    return ("validate", "BUNDLE", "--onnx", inspection.path)


def _list_manifest(manifest: Manifest, quantization: QuantizationRecord | None) -> Rows:
    checkpoint = manifest.checkpoint
    yield "from", f"{checkpoint['source']} ({checkpoint['format']}, sha256 {checkpoint['sha256'][:12]}...)"
    yield from format_import(manifest.imported)
    if model := manifest.model:
        yield "model", f"{model.model_type}, {model.num_parameters:,} parameters, {model.num_blocks} blocks"
        unit = manifest.interface.unit
        work = ", ".join(f"{flops:,} at {seq_len} {unit}" for seq_len, flops in model.flops_per_token.items())
        yield "FLOPs", f"per {unit.removesuffix('s')}: {work}"
        if model.state_bytes:
            yield "state", format_state(model)
    for name, graph in manifest.graphs.items():
        yield name, f"{graph.label}, {format_ranges(graph)}{format_attention(graph)}"
    if manifest.precision:
        yield from format_precision(manifest.precision, manifest.interface.unit)
    if quantization:
        loss = f"loss {quantization.loss:.2%}, accepted {quantization.budget:.2%}"
        yield "quantized", f"{quantization.scheme}: {quantization.quantized_share:.0%} of the weights, {loss}"
    yield "made by", join_pairs(manifest.versions)
    yield "files", f"{len(manifest.files)}, all with the sha256 that the manifest says"


def format_ranges(graph: GraphSpec) -> str:
    """Say which sizes a graph takes: ``batch 1 to 64, seq 17``."""
    return ", ".join(
        f"{axis} {bounds.min}" + ("" if bounds.min == bounds.max else f" to {bounds.max}")
        for axis, bounds in graph.axes.items()
    )


def format_state(model: ModelFacts) -> str:
    """Say how large the state of a row is: at any length, or by length where it grows."""
    if not model.state_bytes_per_token:
        return f"{format_bytes(model.state_bytes)} per row, at any length"
    sizes = (f"{format_bytes(model.count_state_bytes(int(one)))} at {one} tokens" for one in model.flops_per_token)
    return f"{format_bytes(model.state_bytes_per_token)} per row and token: {', '.join(sizes)}"


def format_attention(graph: GraphSpec) -> str:
    """Say that attention is one operator; nothing where it is written out, as in every graph before opset 23."""
    return ", attention as one operator" if graph.fused_attention else ""


def format_import(record: ImportRecord) -> Rows:
    """Yield a row for each thing that was assumed, chosen or repaired when the weights were read."""
    if choice := record.describe_choice():
        yield "weights", choice
    if record.library_version:
        yield "release", f"of {record.library_version}, as given"
    if record.assumed:
        yield "assumed", f"{record.assumptions}: the library's defaults, which nobody gave and weights do not tell"
    yield from (("note", note) for note in record.notes)


def format_precision(facts: PrecisionFacts, unit: str) -> Rows:
    """Yield the rows about a half-precision bundle: what is fp32 in it, and up to which length it holds."""
    names = [island.name for island in facts.islands]
    yield "islands", f"{facts.mode}: {', '.join(names) if names else 'none beyond what is fp32 in every model'}"
    reasons = Counter(island.reason for island in facts.islands)
    for island in facts.islands:
        if reasons[island.reason] == 1:
            yield "", f"{island.name} {island.reason}"
    if facts.precision == "fp16":
        read = f"{facts.data} of {', '.join(map(str, facts.seq_lens))} {unit}"
        if facts.horizon is None:
            yield "horizon", f"nothing grows towards an overflow; measured on {read}"
        else:
            reached = f"reaches a quarter of fp16's range at about {facts.horizon.seq_len:,} {unit}"
            yield "horizon", f"{facts.horizon.quantity} {reached}; measured on {read}"


def _list_graph(analysis: GraphAnalysis, *, is_alone: bool) -> Rows:
    """Yield the rows of a graph; of one without a bundle, with all that it says of itself."""
    if is_alone:
        for key, value in analysis.metadata.items():
            shown = f"{value[:12]}..." if key.endswith("sha256") else value
            yield key.removeprefix(METADATA_PREFIX), shown
    yield "inputs", join_values(analysis.inputs)
    yield "outputs", join_values(analysis.outputs)
    yield "nodes", f"{count_nodes(analysis)}; opset {analysis.opset}; {analysis.producer}"
    yield "operators", join_pairs(analysis.operators)
    yield "constants", f"{analysis.num_parameters:,} numbers, {format_bytes(analysis.constant_bytes)}"


def count_nodes(analysis: GraphAnalysis) -> str:
    """Say how many nodes a graph has, and how many of them are in a block."""
    counts = sorted(set(analysis.nodes_by_block.values()))
    if not counts:
        return str(analysis.num_nodes)
    blocks = len(analysis.nodes_by_block)
    where = "in its block" if blocks == 1 else f"in each of {blocks} blocks"
    return f"{analysis.num_nodes}, {' or '.join(map(str, counts))} {where}"


def join_pairs(pairs: Mapping[str, object]) -> str:
    """Join names with what belongs to them, each pair on one line."""
    return ", ".join(f"{name}{NO_BREAK_SPACE}{value}" for name, value in pairs.items())


def join_values(values: Sequence[str]) -> str:
    """Join descriptions of inputs or outputs; the many tensors of a state are counted."""
    plain = [value for value in values if not value.startswith((STATE_PREFIX, NEW_STATE_PREFIX))]
    state = [f"{len(values) - len(plain)} tensors of the state"] if len(plain) < len(values) else []
    return ", ".join([*plain, *state])


def _list_engine(engine: EngineManifest) -> Rows:
    targets = ", ".join(engine.targets)
    yield "built", f"{engine.flavour} {engine.version} for {targets}, in {engine.build_seconds:.1f} s"
    for kind, specs in (("inputs", engine.inputs), ("outputs", engine.outputs)):
        yield kind, join_values(list(map(_format_spec, specs)))
    for index, profile in enumerate(engine.profiles):
        shown = {name: shapes for name, shapes in profile.items() if not name.startswith(STATE_PREFIX)}
        shapes = "; ".join(f"{name} {_format_shapes(shapes)}" for name, shapes in shown.items())
        yield f"profile {index}", shapes
    dtypes = ", ".join(f"{dtype} {count}" for dtype, count in engine.layer_dtypes.items())
    yield "layers", f"{engine.num_layers} ({dtypes}), {format_bytes(engine.size_bytes)}"
    yield "graph", f"{engine.graph}, sha256 {engine.graph_sha256[:12]}..."


def _format_spec(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} ({', '.join(map(str, spec.shape))})"


def _format_shapes(shapes: ProfileShapes) -> str:
    return ":".join("x".join(map(str, shape)) for shape in (shapes.min, shapes.opt, shapes.max))
