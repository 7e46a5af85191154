"""What TensorRT's parser made of our graphs, computed without a GPU: right answers, and faults that it finds."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from flash_export.bundle.bundle import Bundle
from flash_export.config import BuildOptions, ExportOptions
from flash_export.errors import InputError
from flash_export.exporters.engine import build_engine
from flash_export.exporters.export import export_onnx
from flash_export.exporters.quantization.schemes.registry import SCHEMES_BY_NAME
from flash_export.models.flash import FlashConfig
from flash_export.models.flash_quad import FlashQuadConfig
from flash_export.models.gau import GauConfig
from flash_export.models.gau_alpha import GauAlphaConfig
from flash_export.models.mossformer2 import Mossformer2Config, SpectrumFrames, WaveformFrames
from flash_export.models.registry import get_family
from flash_export.models.rtmpose_gau import RtmposeGauConfig, SimccHead
from flash_export.runtime import trt_api, trt_network
from flash_export.runtime.trt_network import NetworkRunner
from flash_export.validators.backends import list_backends
from flash_export.validators.bisect.bisect import BisectOptions, bisect_bundle
from flash_export.validators.validate import validate_bundle
from flash_export.validators.validation_options import ValidationOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flash_export.models.base import ModelConfig
    from tests.conftest import PrecisionExporter, SchemeExporter

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")

BACKEND = "trt-network"
SCHEMES = [name for name in SCHEMES_BY_NAME if name != "int8-token"]
QUICK: dict[str, Any] = {"threads": 1, "latency_budget_s": 0}


def validate(bundle: Bundle, *backends: str, **options: Any) -> Any:
    report = validate_bundle(bundle, ValidationOptions(backends=backends or (BACKEND,), **{**QUICK, **options}))
    assert not [row for row in report.rows if row.status == "skipped" and row.seq_len], "a shape was left out"
    return report


@pytest.mark.parametrize("causal", [True, False])
def test_the_quick_plan_passes(causal_byte_bundle: Bundle, masked_byte_bundle: Bundle, causal: bool) -> None:
    report = validate(causal_byte_bundle if causal else masked_byte_bundle)
    assert report, [row.reason for row in report.rows if not row]
    assert {row.backend for row in report.rows} == {BACKEND}
    assert report.scores is not None


def test_texts_in_pieces_pass(causal_bundle: Bundle) -> None:
    report = validate(causal_bundle, f"stream:{BACKEND}", max_seq_len=9, batches=(2,))
    assert report, [row.reason for row in report.rows if not row]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_passes(export_half: PrecisionExporter, precision: str) -> None:
    report = validate(export_half(precision), max_seq_len=70)
    assert report, [row.reason for row in report.rows if not row]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_that_is_built_is_computed(export_scheme: SchemeExporter, scheme: str) -> None:
    """As onnxruntime computes it where that can, as the model in few bits otherwise."""
    bundle = export_scheme(scheme)
    report = validate(bundle, seq_lens=(1, 8, 9, 33), batches=(1, 2))
    assert {row.status for row in report.rows if row.seq_len} == {"passed"}, [row.reason for row in report.rows]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_texts_in_pieces_pass_in_half_precision(export_half: PrecisionExporter, precision: str) -> None:
    report = validate(export_half(precision), f"stream:{BACKEND}", max_seq_len=40, batches=(2,))
    assert report, [row.reason for row in report.rows if not row]
    assert {row.backend for row in report.rows} == {f"stream:{BACKEND}"}


SIZES: dict[str, Any] = {"dim": 16, "depth": 1, "hidden_dim": 24, "qk_dim": 8}
SOUND: dict[str, Any] = {**SIZES, "chunk_size": 8, "fsmn_dim": 12}
WAVE, SPECTRUM = WaveformFrames(kernel_size=8, sample_rate=8000), SpectrumFrames(8000, length=20, hop=5, num_bands=4)
HEAD = SimccHead(6, map_width=3, map_height=4, kernel_size=3, image_width=24, image_height=32)
OTHERS: dict[str, ModelConfig] = {
    "flash in two directions": FlashConfig(29, **SIZES, chunk_size=8),
    "gau": GauConfig(29, **SIZES, causal=True),
    "gau_alpha": GauAlphaConfig(29, **SIZES),
    "flash_quad": FlashQuadConfig(29, **SIZES),
    "masks": Mossformer2Config(in_channels=5, out_channels=9, **SOUND),
    "speech": Mossformer2Config(in_channels=12, out_channels=11, spectrum=SPECTRUM, **SOUND),
    "speakers": Mossformer2Config(in_channels=8, out_channels=8, fsmn="dilated", frames=WAVE, **SOUND),
    "keypoints": RtmposeGauConfig(17, dim=16, hidden_dim=32, out_dim=16, qk_dim=8, rel_bias=True, head=HEAD),
}


WHOLE = [pytest.param(precision, None, marks=pytest.mark.slow) for precision in ("fp32", "fp16")]


@pytest.mark.parametrize(("precision", "max_seq_len"), [("fp32", 40), *WHOLE])
@pytest.mark.parametrize("name", OTHERS)
def test_graphs_of_every_family_pass(name: str, precision: str, max_seq_len: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = OTHERS[name]
    get_family(config.model_type).model_class(config).save_pretrained(tmp_path / "checkpoint")
    options = ExportOptions(max_seq_len=500, precision=precision)
    if config.interface.fixed_len is not None:
        options = replace(options, max_seq_len=None)
    bundle = export_onnx(tmp_path / "checkpoint", tmp_path / "bundle", options=options)
    report = validate(bundle, max_seq_len=None if config.interface.fixed_len else max_seq_len)
    assert report, [row.reason for row in report.rows if not row]


def test_what_the_parser_cannot_take_is_skipped_and_said(export_scheme: SchemeExporter) -> None:
    report = validate_bundle(export_scheme("int8-token"), ValidationOptions(backends=(BACKEND,), **QUICK))
    (row,) = report.rows
    assert row.status == "skipped"
    assert row.reason is not None
    assert "QuantizeLinear" in row.reason


def test_it_is_a_default_where_an_engine_was_built(causal_bundle: Bundle, tmp_path: Path) -> None:
    assert BACKEND not in {one.name for one in list_backends(causal_bundle)}
    bundle = Bundle.open(shutil.copytree(causal_bundle.path, tmp_path / "bundle"))
    build_engine(bundle, options=BuildOptions(compute_capabilities=("8.9",)))
    names = {one.name for one in list_backends(bundle)}
    assert {BACKEND, "trt:forward"} <= names
    assert f"stream:{BACKEND}" not in names


def test_inputs_are_checked_as_by_every_backend(causal_bundle: Bundle) -> None:
    with NetworkRunner(causal_bundle.get_graph(), causal_bundle.get_graph_path()) as runner:
        assert runner.name == BACKEND
        with pytest.raises(InputError, match="seq_len=61"):
            runner.run({"input_ids": np.zeros((1, 61), np.int64)})


# Faults of a parser: each changes one layer of the network, found by its type and the ONNX node that it came from.
CLASSES = {
    "SHUFFLE": "IShuffleLayer",
    "ELEMENTWISE": "IElementWiseLayer",
    "MATRIX_MULTIPLY": "IMatrixMultiplyLayer",
    "CUMULATIVE": "ICumulativeLayer",
    "CONCATENATION": "IConcatenationLayer",
    "REDUCE": "IReduceLayer",
    "SLICE": "ISliceLayer",
    "ACTIVATION": "IActivationLayer",
    "UNARY": "IUnaryLayer",
    "NORMALIZATION": "INormalizationLayer",
}


def find_layer(parsed: Any, kind: str, name: str) -> Any:
    layers = (parsed.network.get_layer(index) for index in range(parsed.network.num_layers))
    layer = next(one for one in layers if (one.type.name, one.name) == (kind, name))
    layer.__class__ = getattr(parsed.trt, CLASSES[kind])
    return layer


def swap(parsed: Any, layer: Any) -> None:
    first, second = layer.get_input(0), layer.get_input(1)
    layer.set_input(0, second)
    layer.set_input(1, first)


def change(name: str, value: Any) -> Callable[[Any, Any], None]:
    """Give an attribute another value, which for enums is a name."""

    def plant(parsed: Any, layer: Any) -> None:
        owner, _, member = value.partition(".") if isinstance(value, str) else ("", "", "")
        setattr(layer, name, getattr(getattr(parsed.trt, owner), member) if owner else value)

    return plant


def read_linear_query(parsed: Any, layer: Any) -> None:
    layers = (parsed.network.get_layer(index) for index in range(parsed.network.num_layers))
    _, linear_query, *_ = (one for one in layers if one.type.name == "SLICE" and one.name.startswith(SPLIT_HEADS))
    layer.set_input(0, linear_query.get_output(0))


SPLIT_HEADS = "layers.0.quadratic/Split_0"
FAULTS = [
    ("exclusive lost", "CUMULATIVE", "layers.0.linear/CumSum_0", change("exclusive", value=False), "layers.0.kv"),
    ("sum from the end", "CUMULATIVE", "layers.0.linear/CumSum_0", change("reverse", value=True), "layers.0.kv"),
    ("operands swapped", "ELEMENTWISE", "layers.0.norm/Div_0", swap, "layers.0.normed"),
    ("subtracted", "ELEMENTWISE", "layers.0/Add_2", change("op", "ElementWiseOperation.SUB"), "layers.0.out"),
    ("slice starts one later", "SLICE", "layers.0/Split_0", change("start", (0, 0, 0, 0, 1)), "layers.0.gate"),
    ("zeros on the other side", "CONCATENATION", "layers.0/Concat_0", swap, "layers.0.normed"),
    ("pieces in another order", "CONCATENATION", "embedding/Concat_0", swap, "embedding"),
    (
        "another activation",
        "ACTIVATION",
        "layers.0.projection/Sigmoid_0",
        change("type", "ActivationType.TANH"),
        "value",
    ),
    ("sine for cosine", "UNARY", "rotary/Cos_0", change("op", "UnaryOperation.SIN"), "layers.0.quad_q"),
    ("largest for sum", "REDUCE", "layers.1.norm/ReduceSum_0", change("op", "ReduceOperation.MAX"), "layers.1.normed"),
    ("another head", "MATRIX_MULTIPLY", "layers.0.quadratic/MatMul_0", read_linear_query, "layers.0.weights"),
    ("another epsilon", "NORMALIZATION", "head.norm/LayerNormalization_0", change("epsilon", value=1.0), "logits"),
]


def misread(monkeypatch: pytest.MonkeyPatch, kind: str, layer: str, plant: Callable[[Any, Any], None]) -> None:
    """Let the parser take a layer for something else."""
    parse = trt_api.parse_network

    def parse_wrongly(flavour: Any, path: Path) -> Any:
        parsed = parse(flavour, path)
        plant(parsed, find_layer(parsed, kind, layer))
        return parsed

    monkeypatch.setattr(trt_network, "parse_network", parse_wrongly)


@pytest.mark.parametrize(
    ("kind", "layer", "plant", "quantity"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS]
)
def test_a_fault_of_the_parser_is_refused_and_found(
    kind: str,
    layer: str,
    plant: Callable[[Any, Any], None],
    quantity: str,
    causal_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    misread(monkeypatch, kind, layer, plant)
    report = validate(causal_bundle, seq_lens=(1, 8, 21), batches=(2,))
    assert not report
    fault = bisect_bundle(causal_bundle, BisectOptions(backend=BACKEND, threads=1)).shown_run.fault
    assert fault is not None
    assert fault.name.endswith(quantity)


@pytest.mark.parametrize(
    ("kind", "layer", "plant", "found"),
    [
        ("SHUFFLE", "layers.0/Reshape_1", change("reshape_dims", (0, -1, 1, 4, 44)), "'layers.0.projection/MatMul_0'"),
        ("SHUFFLE", "layers.0/Reshape_1", change("reshape_dims", (0, -1, 1, 8, 21)), "'layers.0/Reshape_1'"),
        ("SLICE", "layers.0/Split_0", change("start", (0, 0, 0, 0, 90)), "'layers.0/Split_0'"),
    ],
    ids=["a shuffle of other sizes", "a shuffle of fewer values", "a slice beyond the end"],
)
def test_layers_that_do_not_go_together_are_named(
    kind: str,
    layer: str,
    plant: Callable[[Any, Any], None],
    found: str,
    causal_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    misread(monkeypatch, kind, layer, plant)
    report = validate(causal_bundle, seq_lens=(1, 21), batches=(2,))
    assert {row.status for row in report.rows if row.seq_len} == {"failed"}
    assert all(found in (row.reason or "") for row in report.rows if row.seq_len)
    assert found in bisect_bundle(causal_bundle, BisectOptions(backend=BACKEND, threads=1)).shown_run.failure
