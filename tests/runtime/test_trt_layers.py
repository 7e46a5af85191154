"""Layers of TensorRT networks against the cases of the ONNX standard, which come with the onnx package."""

from __future__ import annotations

import types
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases

from flash_export.errors import BackendUnavailableError, BundleError
from flash_export.runtime import trt_network
from flash_export.runtime.trt_network import NetworkRunner

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")

# What our graphs are made of, and some that are near to it.
OPERATORS = {
    *("Add", "And", "Attention", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv", "ConvTranspose"),
    *("Cos", "CumSum"),
    *("DequantizeLinear", "Div", "Equal", "Erf", "Exp", "Expand", "Gather", "GatherND", "Gelu", "Gemm", "Greater"),
    *("LayerNormalization", "LeakyRelu", "Less", "Log", "MatMul", "Max", "Min", "Mul", "Neg", "Not", "Or", "PRelu"),
    *("Pad", "Pow", "QuantizeLinear", "Range", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    *("ReduceSum", "Relu", "Reshape", "ScatterElements", "ScatterND", "Shape", "Sigmoid", "Sin", "Size", "Slice"),
    *("Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Trilu", "Unsqueeze", "Where"),
}
# The parser of TensorRT-RTX 1.7.1 takes an upper triangle for a lower one where the attribute is left to its default.
MISREAD = "test_triu"
NOT_COMPUTED = {
    *("test_conv_with_autopad_same", "test_convtranspose_autopad_same", "test_gathernd_example_int32_batch_dim1"),
}
# The parser drops what later opsets added to Attention: lengths of the keys (24) and windows (25).
ATTENTION_OPSET = 23
HIDES_ALL = {"test_attention_23_boolmask_fullymasked_row_nan_robustness"}  # TensorRT does not say what is left then
EMPTY = {"test_reduce_max_empty_set", "test_reduce_min_empty_set"}  # PyTorch has no largest of nothing
MIN_CASES, MIN_ATTENTIONS = 300, 20


@pytest.fixture(scope="module")
def cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    return [case for case in found if case.data_sets and case.model and _is_read(case.model)]


def _is_read(model: onnx.ModelProto) -> bool:
    operators = {node.op_type for node in model.graph.node}
    return operators <= OPERATORS and ("Attention" not in operators or model.opset_import[0].version <= ATTENTION_OPSET)


@pytest.fixture(autouse=True)
def _take_any_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_network, "check_inputs", lambda _graph, _inputs: None)


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    onnx.save(model, path)
    graph: Any = types.SimpleNamespace(inputs=(), outputs=())
    with NetworkRunner(graph, path) as runner:
        return runner.run(feeds)


def test_layers_compute_what_the_standard_says(cases: list[Any], tmp_path: Path) -> None:
    """All inputs but the first are constants, as in our graphs; what the parser does not take is left out."""
    right: set[str] = set()
    wrong: set[str] = set()
    failed, unknown = set(), set()
    for case in cases:
        inputs, outputs = case.data_sets[0]
        arrays = dict(zip((one.name for one in case.model.graph.input), map(np.asarray, inputs), strict=True))
        if any(values.dtype.kind not in "biuf" or values.dtype == np.float64 for values in arrays.values()):
            continue
        if any(values.dtype.isbuiltin != 1 for values in arrays.values()):
            continue
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        for one in list(model.graph.input)[1:]:
            model.graph.initializer.append(numpy_helper.from_array(arrays.pop(one.name), one.name))
            model.graph.input.remove(one)
        try:
            found = run(model, arrays, tmp_path / "model.onnx")
        except BackendUnavailableError as error:
            if "cannot take" not in str(error):
                unknown.add(case.name)
            continue
        except BundleError:
            failed.add(case.name)
            continue
        wanted = dict(zip((one.name for one in model.graph.output), map(np.asarray, outputs), strict=True))
        is_right = all(
            found[name].shape == values.shape
            and np.allclose(found[name].astype(float), values.astype(float), rtol=1e-3, atol=1e-5, equal_nan=True)
            for name, values in wanted.items()
        )
        (right if is_right else wrong).add(case.name)
    assert {name for name in wrong if not name.startswith(MISREAD)} == HIDES_ALL
    assert sum(name.startswith("test_attention_") for name in right) >= MIN_ATTENTIONS
    assert len(wrong) >= 5  # see MISREAD
    assert unknown == NOT_COMPUTED
    assert failed <= EMPTY
    assert len(right) >= MIN_CASES


@pytest.mark.parametrize("upper", [None, 0, 1])
def test_a_triangle_that_is_misread_is_seen(upper: int | None, tmp_path: Path) -> None:
    attributes: dict[str, Any] = {} if upper is None else {"upper": upper}
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (4, 4)) for name in "xy")
    graph = helper.make_graph([helper.make_node("Trilu", ["x"], ["y"], **attributes)], "triangle", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    values = np.arange(16, dtype=np.float32).reshape(4, 4)
    found = run(model, {"x": values}, tmp_path / "model.onnx")["y"]
    wanted = np.tril(values) if upper == 0 else np.triu(values)
    assert np.array_equal(found, wanted) == (upper is not None)


def test_a_layer_that_is_not_computed_is_named(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, 1, 4, 4))
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (1, 1, 2, 2))
    node = helper.make_node("MaxPool", ["x"], ["y"], name="pool", kernel_shape=[3, 3])
    model = helper.make_model(
        helper.make_graph([node], "pool", [x], [y]), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )
    with pytest.raises(BackendUnavailableError, match=r"layer 'pool' is a POOLING, which trt-network does not compute"):
        run(model, {}, tmp_path / "model.onnx")
