"""What a report of an engine counts: every layer once, by where it came from, and as large as it is."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from typing import TYPE_CHECKING, Any

import jsonschema
import onnx
import pytest

from flash_export.bundle.bundle import Bundle
from flash_export.cli.schemas import FOLDER
from flash_export.config import TENSORRT_RTX, BuildOptions
from flash_export.errors import BackendUnavailableError, BundleError, ConfigError, EngineBuildError
from flash_export.exporters.analysis import BLOCK_NAME
from flash_export.exporters.engine import build_engine
from flash_export.exporters.engine_report import report as module
from flash_export.exporters.engine_report.report import report_engine
from flash_export.exporters.engine_report.results import sum_flops, sum_outputs, sum_weights
from flash_export.runtime import trt_layers
from flash_export.runtime.trt_api import parse_network
from flash_export.runtime.trt_inspector import EngineLayer

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.exporters.engine_report.results import EngineReport
    from tests.conftest import PrecisionExporter, SchemeExporter

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")


@pytest.fixture
def copied(causal_bundle: Bundle, tmp_path: Path) -> Bundle:
    """Copy the bundle of a causal model, to build engines in."""
    return Bundle.open(shutil.copytree(causal_bundle.path, tmp_path / "bundle"))


def build(bundle: Bundle, name: str = "forward", *profiles: str) -> None:
    build_engine(bundle, options=BuildOptions(name=name, profiles=profiles, compute_capabilities=("8.9",)))


def check_origins(bundle: Bundle, report: EngineReport) -> None:
    """Check every layer beside the network itself: its name, type, dtype, node, and the block of the node."""
    network = parse_network(TENSORRT_RTX, bundle.get_graph_path(report.graph)).network
    assert network.num_layers == len(report.layers)
    for index, layer in enumerate(report.layers):
        real = network.get_layer(index)
        assert (real.name, real.type.name) == (layer.name, layer.type)
        assert layer.nodes
        assert set(layer.nodes) <= report.nodes.keys()
        if real.metadata:
            assert real.metadata == f"[ONNX Layer: {layer.nodes[0]}]"
        blocks = {match[1] if (match := BLOCK_NAME.match(node)) else None for node in layer.nodes}
        if layer.part.startswith("block "):
            assert blocks == {layer.part.removeprefix("block ")}
        elif layer.part == "shared":
            assert len(blocks) > 1
        else:
            assert blocks == {None}
    assert sum(len(report.list_part(part)) for part in report.parts) == len(report.layers)


@pytest.mark.parametrize("graph", ["forward", "prefill", "decode"])
def test_every_layer_came_from_nodes_of_one_part(causal_bundle: Bundle, graph: str) -> None:
    report = report_engine(causal_bundle, graph=graph)
    check_origins(causal_bundle, report)
    assert report.parts[:4] == ["before", "block 0", "block 1", "after"]
    assert len(report.list_part("block 0")) == len(report.list_part("block 1"))
    model = onnx.load(causal_bundle.get_graph_path(graph), load_external_data=False)
    assert report.nodes == {node.name: node.op_type for node in model.graph.node}


def test_weights_are_those_of_the_file(causal_bundle: Bundle, export_scheme: SchemeExporter) -> None:
    for bundle in (causal_bundle, export_scheme("int8"), export_scheme("int4")):
        report = report_engine(bundle, graph="forward")
        model = onnx.load(bundle.get_graph_path("forward"))
        stored = {tensor.name: len(tensor.raw_data) for tensor in model.graph.initializer if tensor.raw_data}
        kept = {layer.name: layer.weights_bytes for layer in report.layers if layer.name in stored}
        assert kept == {name: stored[name] for name in kept}
        assert report.initializer_bytes == sum(stored.values())
        # What is dropped are sizes and zero points; what is added too.
        assert sum(kept.values()) > 0.9 * report.initializer_bytes
        assert sum(kept.values()) <= sum_weights(report.layers)


def test_half_precision_casts(export_half: PrecisionExporter) -> None:
    bundle = export_half("bf16")
    report = report_engine(bundle, graph="forward")
    check_origins(bundle, report)
    casts = Counter((layer.operands, layer.dtype) for layer in report.layers if layer.kind == "cast")
    model = onnx.load(bundle.get_graph_path("forward"), load_external_data=False)
    spelled = sum(node.op_type == "Cast" and node.name.startswith("layers.") for node in model.graph.node)
    found = [layer for layer in report.layers if layer.kind == "cast" and report.nodes[layer.nodes[0]] == "Cast"]
    assert sum(layer.part.startswith("block ") for layer in found) == spelled > 0
    assert casts[("bfloat16",), "float32"] > 0
    assert {layer.operands for layer in report.layers if layer.kind == "product"} == {("bfloat16", "bfloat16")}


@pytest.mark.parametrize(
    ("scheme", "stored"), [("int8", ("int8", "int8")), ("int4", ("float32", "int4")), ("fp8", ("float8_e4m3fn",) * 2)]
)
def test_products_of_quantized_graphs_name_what_is_stored(
    export_scheme: SchemeExporter, scheme: str, stored: tuple[str, str]
) -> None:
    report = report_engine(export_scheme(scheme), graph="forward")
    quantized = ("layers.0.projection", "layers.0.out", "layers.0/", "head")
    products = {layer.nodes[0]: layer.operands for layer in report.layers if layer.kind == "product"}
    assert stored in products.values()
    assert all(node.startswith(quantized) for node, operands in products.items() if operands == stored)
    assert set(products.values()) == {stored, ("float32", "float32")}


def test_sizes_are_those_of_the_profiles(copied: Bundle) -> None:
    build(copied, "two", "1x1:1x8:1x16", "2x8:4x24:4x60")
    report = report_engine(copied)
    assert report
    assert report.engine is not None
    assert (report.engine.name, report.graph) == ("two", "forward")
    assert Counter(layer.dtype for layer in report.layers) == report.engine.layer_dtypes
    assert [(point.profile, point.name, *point.sizes.values()) for point in report.points] == [
        *((0, "min", 1, 1), (0, "opt", 1, 8), (0, "max", 1, 16)),
        *((1, "min", 2, 8), (1, "opt", 4, 24), (1, "max", 4, 60)),
    ]
    assert report.tuned_for == 1
    logits = next(layer for layer in report.layers if layer.nodes == ("head/Add_0",) and layer.works)
    assert [(one.shape, one.size_bytes) for one in logits.outputs] == [
        ((batch, seq, 29), 4 * batch * seq * 29) for batch, seq in ((1, 1), (1, 8), (1, 16), (2, 8), (4, 24), (4, 60))
    ]
    # 8 and 16 tokens are one chunk and two: all of the work but that of the tokens' own is by the chunk.
    assert sum_flops(report.layers, 2) == 2 * sum_flops(report.layers, 1)
    assert sum_outputs(report.layers, 5) > sum_outputs(report.layers, 4) > sum_outputs(report.layers, 3)


def test_engine_is_the_only_one_and_a_graph_can_be_had_alone(copied: Bundle) -> None:
    assert report_engine(copied).engine is None
    build(copied)
    assert getattr(report_engine(copied).engine, "name", None) == "forward"
    alone = report_engine(copied, graph="decode")
    assert (alone.engine, alone.graph, alone.engine_layers) == (None, "decode", None)
    assert alone.not_read == "this is a graph, from which no engine was built"
    build(copied, "second")
    with pytest.raises(ConfigError, match=r"has 2 engines; name one of forward, second with --engine"):
        report_engine(copied)
    assert getattr(report_engine(copied, engine="second").engine, "name", None) == "second"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"engine": "none"}, BundleError, "has no engine 'none'; build one with 'flash-export trt'"),
        ({"graph": "forwards"}, BundleError, r"has no graph 'forwards'; .*did you mean forward"),
        ({"engine": "a", "graph": "forward"}, ConfigError, "engine=a and graph=forward are both given"),
    ],
)
def test_what_is_not_there_is_named(
    causal_bundle: Bundle, options: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        report_engine(causal_bundle, **options)


def test_mistyped_engine_is_suggested(copied: Bundle) -> None:
    build(copied)
    with pytest.raises(BundleError, match=r"no engine 'forwrd'; it has forward \(did you mean forward\?\)"):
        report_engine(copied, engine="forwrd")


def change_manifest(bundle: Bundle, **values: Any) -> None:
    path = bundle.path / "engines" / "forward.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_engine_of_another_network_is_told(copied: Bundle) -> None:
    build(copied)
    change_manifest(copied, num_layers=7)
    assert not report_engine(copied)


def test_engine_of_another_flavour_or_graph_is_an_error(copied: Bundle) -> None:
    build(copied)
    change_manifest(copied, flavour="other")
    with pytest.raises(BundleError, match="flavour 'other', this version knows tensorrt, tensorrt-rtx; build it again"):
        report_engine(copied)
    change_manifest(copied, flavour="tensorrt-rtx", graph_sha256="0" * 64)
    with pytest.raises(BundleError, match="was built from another graph"):
        report_engine(copied)


def test_graph_that_the_parser_refuses_is_an_error(export_scheme: SchemeExporter) -> None:
    with pytest.raises(EngineBuildError, match="QuantizeLinear"):
        report_engine(export_scheme("int8-token"))


def test_layers_of_the_engine_are_read_or_the_reason_is_given(copied: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    build(copied)
    layers = (EngineLayer("fused", "gemm", ("layers.0/Add_0",), ("Half",)),)
    monkeypatch.setattr("flash_export.runtime.trt.load_engine", lambda *_: contextlib.nullcontext("loaded"))
    monkeypatch.setattr(module, "read_engine_layers", {"loaded": layers}.__getitem__)
    report = report_engine(copied)
    assert (report.engine_layers, report.not_read) == (layers, "")

    def refuse(*_: object) -> None:
        raise BackendUnavailableError("no GPU")

    monkeypatch.setattr("flash_export.runtime.trt.load_engine", refuse)
    report = report_engine(copied)
    assert (report.engine_layers, report.not_read) == (None, "no GPU")


def test_layers_are_counted_where_their_sizes_are_not_known(
    causal_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(trt_layers.LAYERS, "CUMULATIVE")
    report = report_engine(causal_bundle, graph="forward")
    assert report.not_measured.startswith("layer 'layers.0.linear/CumSum_0' is a CUMULATIVE")
    assert report.tuned_for is None
    assert {layer.outputs for layer in report.layers} == {()}
    check_origins(causal_bundle, report)


def test_json_follows_its_schema(causal_bundle: Bundle) -> None:
    report = report_engine(causal_bundle, graph="prefill")
    values = json.loads(report.to_json())
    jsonschema.validate(values, json.loads((FOLDER / "engine-report.schema.json").read_text()))
    assert len(values["layers"]) == len(report.layers)
    assert values["layers"][0]["nodes"] == list(report.layers[0].nodes)
