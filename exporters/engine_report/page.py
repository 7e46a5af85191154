"""The report of an engine: what it was built from, where its layers came from, and where the work and the bytes are."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from flash_export.exporters.engine_report import tables
from flash_export.exporters.engine_report.origins import get_block
from flash_export.exporters.engine_report.results import KINDS, sum_flops, sum_outputs, sum_weights
from flash_export.formatting import format_bytes, format_flops, format_percent
from flash_export.report.document import (
    Bar,
    Bars,
    Document,
    Explanations,
    Fact,
    Note,
    Notes,
    Pairs,
    Plots,
    Section,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flash_export.exporters.engine_report.results import EngineReport, Layer, LayerKind

# Classes of the style sheet; what does not work when the network runs is grey.
_STYLES: dict[LayerKind, str] = {
    "product": "s0",
    "pointwise": "s1",
    "reduction": "s2",
    "move": "s3",
    "cast": "s4",
    "other": "s5",
    "constant": "eager",
    "size": "eager pale",
}
_TERMS = (
    ("products", "Products of matrices, and convolutions."),
    ("pointwise", "One number out for each number in: sums, products, activations, roots."),
    ("sums", "Sums, means, norms, softmax, running sums."),
    ("moves", "The same values in another place or shape: `SHUFFLE` is a reshape, a transpose or both."),
    (
        "casts",
        "The same values in another dtype, by a cast, or quantized or dequantized. Each costs bandwidth where it "
        "is not fused with its neighbour.",
    ),
    (
        "constants",
        "Weights, and what depends on no input: known when an engine is built, so that the builder can fold it.",
    ),
    (
        "sizes",
        "What computes the sizes of other layers, a few whole numbers each (TensorRT's shape tensors). Most of "
        "them the parser adds by itself.",
    ),
    (
        "part",
        "The block of the model that the ONNX node is in, by the name of the node. Helpers of the parser, and "
        "constants, count as the node that they are there for; `shared` is what several parts use.",
    ),
    (
        "outputs",
        "Bytes that all layers but constants and sizes give, as if each were written. What a builder fuses is "
        "never written, so this is too much rather than too little.",
    ),
    (
        "work",
        "Floating-point operations of the products, two for each product of two numbers, from the shapes of the "
        "operands. The columns say what the operands are stored in.",
    ),
)


def describe_engine_report(report: EngineReport) -> Document:
    """Return the report as a document."""
    engine = report.engine
    what = f"Engine {engine.name}" if engine else f"Graph {report.graph}"
    return Document(
        subject=f"{what} of {report.bundle}",
        command="flash-export engine-report",
        lead="Counted is the network that TensorRT's parser makes of the graph, from which an engine is built. A "
        "builder goes on from there: it folds, fuses and replaces layers.",
        caveats=tuple(_list_caveats(report)),
        facts=tuple(_list_facts(report)),
        notes=tuple(_list_gaps(report)),
        sections=tuple(_list_sections(report)),
    )


def _list_sections(report: EngineReport) -> Iterator[Section]:
    opt = report.tuned_for
    yield Section("", Pairs(tuple(_list_pairs(report))))
    yield Section("", Plots(tuple(_list_plots(report))), views=("page",))
    yield Section("Layers by type and dtype", tables.tabulate_types(report))
    yield Section("Layers by part of the model", tables.tabulate_parts(report))
    yield Section("Dtypes by part of the model", tables.tabulate_dtypes(report))
    if opt is not None:
        at = tables.format_point(report.points[opt])
        yield Section(f"Work and outputs at {at}", tables.tabulate_work(report, opt))
        yield Section("Shapes of the profiles", tables.tabulate_points(report))
        yield Section("Largest tensors", tables.tabulate_tensors(report, opt))
    casts = tables.tabulate_casts(report, opt)
    yield Section("Casts", casts or Notes((Note("no layer casts"),)))
    yield Section("Weights by part of the model", tables.tabulate_weights(report))
    yield Section("Largest weights", tables.tabulate_largest_weights(report))
    yield Section("Layers of the engine", tables.tabulate_engine_layers(report))
    yield Section(
        "From ONNX nodes to layers",
        tables.tabulate_nodes(report, opt),
        "Every layer of the network, by the node that it came from or is there for. Nodes that became the same layers "
        "in several blocks stand in one row, with the layers of one of them.",
        views=("page",),
    )
    yield Section("How to read this", Explanations(_TERMS), views=("page",))


def _list_pairs(report: EngineReport) -> Iterator[tuple[str, str]]:
    if engine := report.engine:
        yield "built", f"{engine.flavour} {engine.version} for {', '.join(engine.targets)}"
        yield "engine", f"{format_bytes(engine.size_bytes)}, built in {engine.build_seconds:.1f} s"
    lost = Counter(report.nodes[name] for name in report.list_nodes_without_layers())
    without = ", ".join(f"{count} {operator}" for operator, count in lost.most_common())
    yield "graph", f"{report.graph}, {len(report.nodes)} ONNX nodes" + (f"; without a layer: {without}" if lost else "")
    yield "parsed by", report.parser
    profiles = [report.points[index : index + 3] for index in range(0, len(report.points), 3)]
    for index, points in enumerate(profiles):
        default = "" if report.engine else ", which an engine would have by default"
        shapes = ":".join(map(tables.format_point, points)) if points[0].sizes else tables.format_point(points[0])
        yield f"profile {index}", f"{shapes}{default}"


def _list_facts(report: EngineReport) -> Iterator[Fact]:
    working = sum(layer.works for layer in report.layers)
    kinds = Counter(layer.kind for layer in report.layers)
    rest = f"{working:,} that compute, {kinds['constant']:,} constants, {kinds['size']:,} sizes"
    yield Fact("Layers", f"{len(report.layers):,}", rest)
    weights = sum_weights(report.layers)
    difference = weights - report.initializer_bytes
    beside = (
        f"{format_bytes(abs(difference))} {'more' if difference > 0 else 'less'} than in" if difference else "as in"
    )
    yield Fact("Weights", format_bytes(weights), f"{beside} the ONNX file")
    opt = report.tuned_for
    if opt is None:
        return
    flops, blocks = sum_flops(report.layers, opt), _list_block_layers(report)
    share = f", {format_percent(sum_flops(blocks, opt) / flops)} of it in the blocks" if flops and blocks else ""
    at = tables.format_point(report.points[opt])
    yield Fact(f"Work at {at}", format_flops(flops), f"in {kinds['product']} products{share}")
    most = max(range(len(report.points)), key=lambda point: sum_outputs(report.layers, point))
    largest = tables.find_largest(report, most)
    yield Fact(
        f"Largest tensor at {tables.format_point(report.points[most])}",
        format_bytes(largest.outputs[most].size_bytes),
        ", ".join(largest.nodes[:1]),
    )


def _list_block_layers(report: EngineReport) -> list[Layer]:
    return [layer for layer in report.layers if get_block(layer.part) is not None]


def _list_caveats(report: EngineReport) -> Iterator[str]:
    if report.engine and not report:
        yield (
            f"The engine was built from a network of {report.engine.num_layers} layers by {report.engine.flavour} "
            f"{report.engine.version}; what is counted here are the {len(report.layers)} that {report.parser} makes of "
            "the same graph."
        )


def _list_gaps(report: EngineReport) -> Iterator[Note]:
    """Yield what was not read or computed, and why."""
    if report.not_read:
        yield Note(f"fusions and kernels were not read: {report.not_read}", "skipped", "layers of the engine")
    if report.not_measured:
        yield Note(f"not computed: {report.not_measured}", "skipped", "shapes, bytes and work")


def _list_plots(report: EngineReport) -> Iterator[Bars]:
    present = [kind for kind in KINDS if any(layer.kind == kind for layer in report.layers)]
    names = tuple((tables.KIND_TITLES[kind], _STYLES[kind]) for kind in present)
    bars = []
    for part in report.parts:
        kinds = Counter(layer.kind for layer in report.list_part(part))
        bars.append(Bar(part, tuple(kinds[kind] for kind in present), str(kinds.total())))
    yield Bars("Layers by part of the model", "Grey is what does not compute: constants and sizes.", names, tuple(bars))
    opt = report.tuned_for
    if opt is None:
        return
    works = [kind for kind in present if kind not in ("constant", "size")]
    names = tuple((tables.KIND_TITLES[kind], _STYLES[kind]) for kind in works)
    bars = []
    for part in report.parts:
        layers = report.list_part(part)
        pieces = [sum_outputs([layer for layer in layers if layer.kind == kind], opt) for kind in works]
        if any(pieces):
            bars.append(Bar(part, tuple(pieces), format_bytes(sum(pieces))))
    yield Bars(
        f"Bytes of outputs at {tables.format_point(report.points[opt])}",
        "Outputs of all layers that compute, as if each were written, which fusion saves some of.",
        names,
        tuple(bars),
    )
