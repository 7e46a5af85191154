"""Family ``transformer`` at opset 23: attention as the one operator ``ai.onnx::Attention``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from flash_export.config import ATTENTION_OPSET, FORWARD, BuildOptions, ExportOptions
from flash_export.errors import EngineBuildError
from flash_export.exporters.engine import build_engine
from flash_export.exporters.export import export_onnx
from flash_export.exporters.inspection import inspect_bundle
from flash_export.exporters.lowering.precision import Precision
from flash_export.exporters.lowering.registry import lower_model
from flash_export.models.transformer import TransformerConfig, TransformerModel
from flash_export.runtime.ort import OrtRunner

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle

CONFIG = TransformerConfig(vocab_size=29, dim=48, depth=2, num_heads=3, ff_dim=32, positions="rotary")
WRITTEN_OUT = ATTENTION_OPSET - 1
RELATIVE_TOLERANCE = 1e-5
HALF_ROUNDING = {"fp16": 2e-2, "bf16": 2e-1}


def build_model(**fields: Any) -> TransformerModel:
    torch.manual_seed(0)
    model = TransformerModel(replace(CONFIG, **fields))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(requires_grad=False).eval()


def export(model: TransformerModel, folder: Path, **options: Any) -> Bundle:
    model.save_pretrained(folder / "checkpoint")
    options = {"opset": ATTENTION_OPSET, "max_seq_len": 64, "graphs": (FORWARD,), **options}
    return export_onnx(folder / "checkpoint", folder / "bundle", options=ExportOptions(**options))


def draw(masked: bool) -> tuple[torch.Tensor, ...]:
    """Return tokens and, if asked for, a mask that leaves of the last row nothing but padding."""
    input_ids = torch.randint(0, CONFIG.vocab_size, (3, 13), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(13) < torch.tensor([[13], [6], [0]])).long()
    return (input_ids, mask) if masked else (input_ids,)


def compute_error(expected: torch.Tensor, actual: torch.Tensor, rows: slice = slice(None)) -> float:
    return float((expected - actual)[rows].abs().max() / expected[rows].abs().max())


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
def test_the_lowered_model_is_the_reference(causal: bool, masked: bool) -> None:
    model, inputs = build_model(causal=causal), draw(masked)
    actual = lower_model(model, opset=ATTENTION_OPSET)(*inputs)
    assert actual.isfinite().all()
    assert compute_error(model(*inputs)[:1], actual[:1]) < RELATIVE_TOLERANCE
    assert compute_error(model(*inputs)[1, :6], actual[1, :6]) < RELATIVE_TOLERANCE


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_right_up_to_rounding(precision: str) -> None:
    model, inputs = build_model(), draw(masked=True)
    actual = lower_model(model, Precision(precision), ATTENTION_OPSET)(*inputs)
    assert actual.isfinite().all()
    assert 0 < compute_error(model(*inputs), actual, slice(2)) < HALF_ROUNDING[precision]


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
def test_the_graph_has_one_operator_per_block(causal: bool, masked: bool, tmp_path: Path) -> None:
    model, inputs = build_model(causal=causal), draw(masked)
    bundle = export(model, tmp_path, mask=masked)
    path, graph = bundle.get_graph_path(), bundle.get_graph()
    assert graph.fused_attention
    onnx.checker.check_model(path, full_check=True)
    operators = inspect_bundle(bundle).graphs[FORWARD].operators
    assert operators["Attention"] == CONFIG.depth
    assert "Softmax" not in operators
    feeds = {spec.name: one.numpy() for spec, one in zip(graph.inputs, inputs, strict=True)}
    with OrtRunner(graph, path) as runner:
        actual = torch.from_numpy(runner.run(feeds)["logits"])
    assert actual.isfinite().all()
    assert compute_error(model(*inputs)[:1], actual[:1]) < RELATIVE_TOLERANCE
    assert compute_error(model(*inputs)[1, :6], actual[1, :6]) < RELATIVE_TOLERANCE
    evaluator: Any = ReferenceEvaluator(onnx.load(path))
    evaluated = torch.from_numpy(evaluator.run(None, feeds)[0])
    assert compute_error(model(*inputs)[:1], evaluated[:1]) < RELATIVE_TOLERANCE


def test_below_the_opset_it_is_written_out(tmp_path: Path) -> None:
    bundle = export(build_model(), tmp_path, opset=WRITTEN_OUT)
    assert not bundle.get_graph().fused_attention
    operators = inspect_bundle(bundle).graphs[FORWARD].operators
    assert operators["Softmax"] == CONFIG.depth
    assert "Attention" not in operators


def test_what_is_within_the_operator_is_no_probe_and_all_around_it_is(tmp_path: Path) -> None:
    bundles = [export(build_model(), tmp_path / str(opset), opset=opset) for opset in (WRITTEN_OUT, ATTENTION_OPSET)]
    written_out, fused = ([probe.name for probe in bundle.read_probes().probes] for bundle in bundles)
    assert fused == written_out
    assert "layers.1.mixed" in fused


def test_an_island_within_makes_the_operator_fp32(tmp_path: Path) -> None:
    bundle = export(build_model(), tmp_path, precision="fp16", islands="all")
    types = onnx.shape_inference.infer_shapes(onnx.load(bundle.get_graph_path())).graph.value_info
    found = {value.name: value.type.tensor_type.elem_type for value in types}
    attentions = [node for node in onnx.load(bundle.get_graph_path()).graph.node if node.op_type == "Attention"]
    assert {found[node.output[0]] for node in attentions} == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
def test_tensorrt_reads_it_as_it_is_meant(causal: bool, precision: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    from flash_export.runtime.trt_network import NetworkRunner

    model, inputs = build_model(causal=causal), draw(masked=True)
    bundle = export(model, tmp_path, mask=True, precision=precision)
    graph = bundle.get_graph()
    feeds = {spec.name: one.numpy() for spec, one in zip(graph.inputs, inputs, strict=True)}
    with NetworkRunner(graph, bundle.get_graph_path()) as runner:
        actual = torch.from_numpy(runner.run(feeds)["logits"])
    limit = RELATIVE_TOLERANCE if precision == "fp32" else HALF_ROUNDING["fp16"]
    assert compute_error(model(*inputs)[:1], actual[:1]) < limit
    assert np.isfinite(actual.numpy()).all()


def test_tensorrt_builds_it_in_fp16_and_says_how_to_in_fp32(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    options = BuildOptions(compute_capabilities=("8.9",), flavour="tensorrt-rtx", cache=False)
    half = export(build_model(), tmp_path / "half", precision="fp16")
    assert build_engine(half, options=options).engine.num_layers > 0
    wide = export(build_model(), tmp_path / "wide")
    with pytest.raises(EngineBuildError, match=r"no kernel for the operator Attention.*--opset 20") as caught:
        build_engine(wide, options=options)
    assert "\n" not in str(caught.value)
    assert (
        build_engine(export(build_model(), tmp_path / "out", opset=WRITTEN_OUT), options=options).engine.num_layers > 0
    )
