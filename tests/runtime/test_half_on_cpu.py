"""Rounding spelled out in fp32 gives what the ONNX reference evaluator gives in half precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from flash_export.bundle.manifest import AxisRange, GraphSpec
from flash_export.config import ExportOptions
from flash_export.errors import BundleError
from flash_export.exporters.export import export_onnx
from flash_export.interface import TensorSpec
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.runtime.half_on_cpu import spell_rounding
from flash_export.runtime.ort import OrtRunner, list_values

if TYPE_CHECKING:
    from pathlib import Path

onnxruntime = pytest.importorskip("onnxruntime")

HALF: dict[str, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
UNIT = {"fp16": 2.0**-10, "bf16": 2.0**-7}  # distance of neighbours, as a fraction


def build_chain(half: int) -> onnx.ModelProto:
    """Return ``sqrt(x * x)`` in half precision between Casts, which overflows where the square does."""
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=half),
        helper.make_node("Mul", ["narrow", "narrow"], ["square"]),
        helper.make_node("Sqrt", ["square"], ["root"]),
        helper.make_node("Cast", ["root"], ["y"], to=TensorProto.FLOAT),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph(nodes, "chain", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run_plain(model: onnx.ModelProto, **inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0])


def evaluate(model: onnx.ModelProto | str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    outputs: Any = ReferenceEvaluator(model).run(None, inputs)
    return np.asarray(outputs[0])


def test_onnxruntime_alone_does_not_round_between_operators() -> None:
    """If this fails, onnxruntime has learnt it, and fp16 graphs may be given to it as they are."""
    assert run_plain(build_chain(HALF["fp16"]), x=np.full(1, 300, np.float32)) == pytest.approx(300)


@pytest.mark.parametrize("precision", HALF)
def test_chain_rounds_and_overflows_as_half_does(precision: str) -> None:
    model = build_chain(HALF[precision])
    x = np.array([0.1, 3.3, 200, 300, 1e-4, -7], np.float32)
    with np.errstate(over="ignore"):
        expected = evaluate(model, {"x": x})
    actual = run_plain(spell_rounding(model), x=x)
    np.testing.assert_array_equal(actual, expected)
    assert np.isinf(actual[3]) == (precision == "fp16")


@pytest.mark.parametrize(
    ("precision", "causal"),
    [
        ("fp16", True),
        pytest.param("bf16", False, marks=pytest.mark.slow),
        pytest.param("bf16", True, marks=pytest.mark.slow),
        pytest.param("fp16", False, marks=pytest.mark.slow),
    ],
)
def test_model_is_what_the_reference_evaluator_says(precision: str, causal: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = FlashConfig(
        vocab_size=13,
        dim=10,
        depth=2,
        hidden_dim=12,
        chunk_size=4,
        qk_dim=6,
        causal=causal,
    )
    model = FlashModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "checkpoint")
    options = ExportOptions(precision=precision, mask=False, graphs=("forward",))
    bundle = export_onnx(tmp_path / "checkpoint", tmp_path / "bundle", options=options)
    inputs = {"input_ids": np.random.default_rng(0).integers(0, 13, (2, 11))}
    expected = evaluate(str(bundle.get_graph_path()), inputs)
    with OrtRunner(bundle.get_graph(), bundle.get_graph_path()) as runner:
        actual = runner.run(inputs)["logits"]
    # Products are summed in another order and, by the evaluator, in half precision.
    assert np.abs(actual - expected).max() < 8 * UNIT[precision] * np.abs(expected).max()


@pytest.mark.parametrize("precision", HALF)
def test_values_keep_their_names_and_the_interface_its_dtypes(precision: str, tmp_path: Path) -> None:
    half = HALF[precision]
    weight = helper.make_tensor("weight", half, [2], np.array([1.5, -3]).tolist())
    nodes = [
        helper.make_node("Add", ["x", "weight"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["y"]),
        helper.make_node("Mul", ["y", "y"], ["z"]),
    ]
    values = {name: helper.make_tensor_value_info(name, half, [2]) for name in "xyz"}
    graph = helper.make_graph(nodes, "g", [values["x"]], [values["y"], values["z"]], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    spelled = spell_rounding(model)
    onnx.checker.check_model(spelled, full_check=True)
    assert [value.name for value in spelled.graph.output] == ["y", "z"]
    assert {value.type.tensor_type.elem_type for value in (*spelled.graph.input, *spelled.graph.output)} == {half}
    assert {"sum", "y", "z"} <= {name for node in spelled.graph.node for name in node.output}
    computing = [node for node in spelled.graph.node if node.op_type != "Cast"]
    inferred = onnx.shape_inference.infer_shapes(spelled).graph.value_info
    types = {value.name: value.type.tensor_type.elem_type for value in inferred}
    assert {types[node.output[0]] for node in computing} == {TensorProto.FLOAT}
    if precision == "fp16":
        x = np.array([0.1, 7], np.float16)
        path = tmp_path / "graph.onnx"
        onnx.save(model, path)
        specs = {name: TensorSpec(name, "float16", (2,)) for name in "xyz"}
        spec = GraphSpec("graph.onnx", 20, "fp16", (specs["x"],), (specs["y"], specs["z"]), {"batch": AxisRange(1, 1)})
        with OrtRunner(spec, path, inner_values=("sum",)) as runner:
            outputs = runner.run({"x": x})
        total = x + np.array([1.5, -3], np.float16)
        np.testing.assert_array_equal(outputs["sum"], total.astype(np.float32))
        np.testing.assert_array_equal(outputs["z"], np.maximum(total, 0) ** 2)
        assert "sum" in list_values(path)


def test_fp32_graph_is_left_alone() -> None:
    model = build_chain(TensorProto.FLOAT)
    assert list(spell_rounding(model).graph.node) == list(model.graph.node)


def test_as_it_is_bf16_is_refused_and_fp16_taken(tmp_path: Path) -> None:
    for precision, half in HALF.items():
        path = tmp_path / f"{precision}.onnx"
        onnx.save(build_chain(half), path)
        specs = [TensorSpec(name, "float32", ("n",)) for name in "xy"]
        spec = GraphSpec(path.name, 20, precision, (specs[0],), (specs[1],), {"n": AxisRange(1, 4)})
        if precision == "bf16":
            with pytest.raises(BundleError, match="cannot be loaded by onnxruntime"):
                OrtRunner(spec, path, rounds=False)
        else:
            with OrtRunner(spec, path, rounds=False) as runner:
                assert runner.run({"x": np.full(1, 300, np.float32)})["y"] == pytest.approx(300)
