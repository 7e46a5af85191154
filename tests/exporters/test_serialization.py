"""Files written weight by weight are the files that protobuf would have written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from flash_export.exporters import serialization
from flash_export.exporters.serialization import SplitModels, write_models

if TYPE_CHECKING:
    from pathlib import Path


def make_model(width: int) -> onnx.ModelProto:
    """Build ``y = x @ large + small``."""
    random = np.random.default_rng(0)
    weights = {"large": random.random((width, width)), "other": random.random((width, width)), "small": np.ones(1)}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "large"], ["h"]),
            helper.make_node("MatMul", ["h", "other"], ["z"]),
            helper.make_node("Add", ["z", "small"], ["y"]),
        ],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    model.producer_name = "test"
    return model


def sort_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    tensors = sorted(model.graph.initializer, key=lambda tensor: tensor.name)
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    return model


@pytest.mark.parametrize("width", [3, 17, 64, 300])  # the last needs lengths of three bytes
def test_inline_file_is_what_protobuf_reads_back(tmp_path: Path, width: int) -> None:
    model = ir.from_proto(make_model(width))
    expected = sort_initializers(ir.to_proto(model))
    split = SplitModels("model.onnx.data")
    split.add("model.onnx", model)
    write_models(split, tmp_path)
    assert sort_initializers(onnx.load(tmp_path / "model.onnx")) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)


def test_external_weights_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serialization, "EXTERNAL_DATA_THRESHOLD_BYTES", 0)
    x = np.ones((2, 64), np.float32)
    expected = ReferenceEvaluator(make_model(64)).run(None, {"x": x})
    split = SplitModels("model.onnx.data")
    split.add("model.onnx", ir.from_proto(make_model(64)))
    write_models(split, tmp_path)
    assert (tmp_path / "model.onnx").stat().st_size < 2000
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    actual = ReferenceEvaluator(onnx.load(tmp_path / "model.onnx")).run(None, {"x": x})
    np.testing.assert_array_equal(actual, expected)


def test_graphs_of_one_model_share_their_weights(tmp_path: Path) -> None:
    models = SplitModels("weights")
    for file in ("first.onnx", "second.onnx"):
        models.add(file, ir.from_proto(make_model(64)))
    write_models(models, tmp_path)
    assert (tmp_path / "weights").stat().st_size == 2 * 64 * 64 * 4
    x = np.ones((2, 64), np.float32)
    expected = ReferenceEvaluator(make_model(64)).run(None, {"x": x})
    for file in models.skeletons:
        np.testing.assert_array_equal(ReferenceEvaluator(onnx.load(tmp_path / file)).run(None, {"x": x}), expected)


def test_different_weights_of_one_name_are_not_shared() -> None:
    other = make_model(64)
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((64, 64), np.float32), "large"))
    models = SplitModels("weights")
    models.add("first.onnx", ir.from_proto(make_model(64)))
    with pytest.raises(RuntimeError, match="'large'"):
        models.add("second.onnx", ir.from_proto(other))
