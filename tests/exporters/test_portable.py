"""Graphs are of forms that other readers of ONNX take: its reference evaluator, and onnxruntime's symbolic shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from flash_export.config import DECODE, EXTEND, FORWARD, MAX_OPSET, MIN_OPSET, PREFILL, ExportOptions
from flash_export.exporters.export import export_onnx
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.gau import GauConfig, GauModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flash_export.bundle.bundle import Bundle
    from flash_export.models.base import ReferenceModel

SIZES: dict[str, Any] = {"vocab_size": 19, "dim": 8, "depth": 1, "hidden_dim": 12, "qk_dim": 6}
SEQ_LEN, CHUNK_SIZE = 11, 4
FLASH: dict[str, Any] = {**SIZES, "chunk_size": CHUNK_SIZE}
OTHER: dict[str, Any] = {"shift_tokens": False, "norm_type": "layernorm", "attention_fn": "laplace"}
CASES: dict[str, tuple[FlashConfig | GauConfig, ExportOptions]] = {
    "causal": (FlashConfig(**FLASH, causal=True), ExportOptions(opset=MIN_OPSET)),
    "no shift, fp16": (
        FlashConfig(**FLASH, causal=True, **OTHER),
        ExportOptions(opset=MAX_OPSET, precision="fp16"),
    ),
    "masked": (FlashConfig(**FLASH), ExportOptions(opset=MAX_OPSET)),
    "sum in chunks, bf16": (
        FlashConfig(**FLASH, sum_over_chunks=False),
        ExportOptions(opset=MIN_OPSET, precision="bf16", mask=False),
    ),
    "gau": (GauConfig(**SIZES, norm_type="scalenorm"), ExportOptions(opset=MIN_OPSET)),
    "causal gau": (GauConfig(**SIZES, causal=True, attention_fn="laplace"), ExportOptions(opset=MAX_OPSET, mask=False)),
}
TOLERANCES = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 1e-1}  # of the output's scale


SLOW = {"no shift, fp16", "sum in chunks, bf16"}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CASES]
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, ReferenceModel]:
    torch.manual_seed(0)
    config, options = CASES[request.param]
    model: ReferenceModel = FlashModel(config) if isinstance(config, FlashConfig) else GauModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("portable")
    model.save_pretrained(folder / "model")
    return export_onnx(folder / "model", folder / "bundle", options=options), model.eval()


def test_tokens_are_counted_in_integers(exported: tuple[Bundle, ReferenceModel]) -> None:
    """A runtime that computes fp32 graphs in bf16 rounds 257 to 256: no token may be found or hidden by that."""
    model = onnx.shape_inference.infer_shapes(onnx.load(exported[0].get_graph_path(), load_external_data=False))
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    makers = {output: node for node in model.graph.node for output in node.output}
    integers = {onnx.TensorProto.INT32, onnx.TensorProto.INT64}
    casts = [node for node in model.graph.node if node.op_type == "Cast" and node.attribute[0].i in integers]
    counted = [node for node in casts if types[node.input[0]] in floats]
    assert counted
    assert {makers[node.input[0]].op_type for node in counted} == {"Range"}
    compared = [
        node for node in model.graph.node if node.op_type in ("Less", "Greater", "LessOrEqual", "GreaterOrEqual")
    ]
    assert not [node.name for node in compared if types[node.input[0]] in floats]


def test_reference_evaluator_agrees_with_eager(exported: tuple[Bundle, ReferenceModel]) -> None:
    bundle, model = exported
    graph = bundle.get_graph(FORWARD)
    ids = np.random.default_rng(0).integers(0, 19, (2, SEQ_LEN))
    inputs, mask = {"input_ids": ids}, np.ones_like(ids)
    if graph.has_mask:
        mask[1, 7:] = 0
        inputs["attention_mask"] = mask
    with torch.inference_mode():
        expected = model(torch.from_numpy(ids), torch.from_numpy(mask) if graph.has_mask else None).numpy()
    check_close(evaluate(bundle, FORWARD, inputs)["logits"], expected, mask, graph.precision)
    if PREFILL not in bundle.manifest.graphs:
        return
    # A segment, then a block and token by token.
    lengths = np.full(2, CHUNK_SIZE + 1)
    specs = bundle.get_graph(DECODE).state_inputs
    state = {spec.name: np.zeros([2, *map(int, spec.shape[1:])], spec.dtype) for spec in specs}
    outputs = evaluate(bundle, PREFILL, {"input_ids": ids[:, : CHUNK_SIZE + 1], "lengths": lengths, **state})
    logits, start = [outputs["logits"]], CHUNK_SIZE + 1
    if EXTEND in bundle.manifest.graphs:
        state = {name.removeprefix("new_"): value for name, value in outputs.items() if name != "logits"}
        block = {"input_ids": ids[:, start : start + CHUNK_SIZE - 1], "lengths": np.full(2, CHUNK_SIZE - 1)}
        outputs = evaluate(bundle, EXTEND, {**block, **state})
        logits.append(outputs["logits"])
        start += CHUNK_SIZE - 1
    for position in range(start, SEQ_LEN):
        state = {name.removeprefix("new_"): value for name, value in outputs.items() if name != "logits"}
        outputs = evaluate(bundle, DECODE, {"input_ids": ids[:, position : position + 1], **state})
        logits.append(outputs["logits"])
    check_close(np.concatenate(logits, axis=1), expected, mask, graph.precision)


def test_symbolic_shapes_are_inferred(exported: tuple[Bundle, ReferenceModel]) -> None:
    check_symbolic_shapes(exported[0])


def test_symbolic_shapes_of_quantized_state_are_inferred(int8_bundle: Bundle) -> None:
    check_symbolic_shapes(int8_bundle)


@pytest.mark.parametrize("scheme", ["int4", "fp8"])
def test_symbolic_shapes_of_schemes_are_inferred(scheme: str, export_scheme: Callable[[str], Bundle]) -> None:
    check_symbolic_shapes(export_scheme(scheme))


def test_shapes_of_a_scale_per_token_are_inferred_by_onnx_alone(export_scheme: Callable[[str], Bundle]) -> None:
    bundle = export_scheme("int8-token")
    for name, model in load_graphs(bundle).items():
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in inferred.graph.output}
        assert ranks == {spec.name: len(spec.shape) for spec in bundle.get_graph(name).outputs}
        assert {value.name for value in (*inferred.graph.value_info, *inferred.graph.output)} >= {
            output for node in model.graph.node for output in node.output
        }
        with pytest.raises(TypeError):  # onnxruntime's tool knows no ReduceMax whose axes are an input
            SymbolicShapeInference.infer_shapes(model)


def test_operators_have_forms_that_all_readers_take(exported: tuple[Bundle, ReferenceModel]) -> None:
    for model in load_graphs(exported[0]).values():
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        assert "ReduceL2" not in {node.op_type for node in model.graph.node}
        for pad in (node for node in model.graph.node if node.op_type == "Pad"):
            assert len(pad.input) < 4, f"{pad.name} has axes"
            counts = constants.get(pad.input[1])
            assert counts is None or (counts >= 0).all(), f"{pad.name} cuts"


def evaluate(bundle: Bundle, name: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [spec.name for spec in bundle.get_graph(name).outputs]
    outputs: Any = ReferenceEvaluator(str(bundle.get_graph_path(name))).run(names, dict(inputs))
    return dict(zip(names, outputs, strict=True))


def check_close(actual: np.ndarray, expected: np.ndarray, valid: np.ndarray, precision: str) -> None:
    off = np.abs(actual - expected)[valid.astype(bool)].max()
    assert off <= TOLERANCES[precision] * np.abs(expected).max()


def load_graphs(bundle: Bundle) -> dict[str, onnx.ModelProto]:
    return {name: onnx.load_model(bundle.get_graph_path(name)) for name in bundle.manifest.graphs}


def check_symbolic_shapes(bundle: Bundle) -> None:
    """Infer all shapes, with and without leave to merge axes, and compare those of the outputs with the manifest."""
    for name, model in load_graphs(bundle).items():
        for auto_merge in (False, True):
            inferred = SymbolicShapeInference.infer_shapes(model, auto_merge=auto_merge)
            ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in inferred.graph.output}
            assert ranks == {spec.name: len(spec.shape) for spec in bundle.get_graph(name).outputs}
            known = {value.name for value in (*inferred.graph.value_info, *inferred.graph.output)}
            assert known >= {output for node in model.graph.node for output in node.output}
