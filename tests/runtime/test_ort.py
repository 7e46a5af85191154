from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from flash_export.bundle.manifest import AxisRange, GraphSpec
from flash_export.errors import BackendUnavailableError, BundleError, InputError
from flash_export.install import get_install_command
from flash_export.interface import TensorSpec
from flash_export.runtime import ort
from flash_export.runtime.ort import OrtRunner

if TYPE_CHECKING:
    from pathlib import Path

GRAPH = GraphSpec(
    "model.onnx",
    20,
    "fp32",
    (TensorSpec("input_ids", "int64", ("batch", "seq")),),
    (TensorSpec("logits", "float32", ("batch", "seq")),),
    {"batch": AxisRange(1, 4), "seq": AxisRange(1, 16)},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A graph that casts its input."""
    graph = helper.make_graph(
        [helper.make_node("Cast", ["input_ids"], ["logits"], to=TensorProto.FLOAT)],
        "cast",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "seq"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "seq"])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_run_returns_named_outputs(path: Path) -> None:
    ids = np.arange(6, dtype=np.int64).reshape(2, 3)
    with OrtRunner(GRAPH, path, threads=1) as runner:
        outputs = runner.run({"input_ids": ids})

    assert runner.name == "ort-cpu"
    assert list(outputs) == ["logits"]
    assert np.array_equal(outputs["logits"], ids.astype(np.float32))


def test_inputs_are_checked_before_the_session_sees_them(path: Path) -> None:
    with OrtRunner(GRAPH, path) as runner, pytest.raises(InputError, match="seq_len=17 exceeds"):
        runner.run({"input_ids": np.zeros((1, 17), dtype=np.int64)})  # the graph itself would take it


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda _: b"", lambda _: b"not a graph" * 9])
def test_damaged_file_is_one_clear_error(path: Path, damage: object) -> None:
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(BundleError, match=r"m\.onnx cannot be loaded by onnxruntime .*export it again") as caught:
        OrtRunner(GRAPH, path)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(path: Path) -> None:
    path.unlink()
    with pytest.raises(BundleError, match=r"m\.onnx is missing"):
        OrtRunner(GRAPH, path)


def test_graph_with_other_names_than_the_manifest_is_refused(path: Path) -> None:
    other = dataclasses.replace(GRAPH, outputs=(TensorSpec("scores", "float32", ("batch", "seq")),))
    with pytest.raises(BundleError, match="has the outputs logits, the manifest says scores"):
        OrtRunner(other, path)


def test_missing_onnxruntime_says_what_to_install(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailableError, match=re.escape(f"{get_install_command('cpu')} (or [gpu])")):
        OrtRunner(GRAPH, path)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA build")
def test_build_without_cuda_is_named(path: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=r"no CUDAExecutionProvider, only .*CPUExecutionProvider"):
        OrtRunner(GRAPH, path, provider="cuda")


def test_fallback_to_the_cpu_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA build whose libraries are missing opens a CPU session and only logs it."""
    module = importlib.import_module("onnxruntime")
    real_session = module.InferenceSession
    monkeypatch.setattr(module, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(module, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(
        module,
        "InferenceSession",
        lambda name, options, providers, enable_fallback: real_session(
            name, options, providers=["CPUExecutionProvider"]
        ),
    )
    with pytest.raises(
        BackendUnavailableError, match=r"cannot start CUDAExecutionProvider: it was left out.*nvidia-smi"
    ):
        OrtRunner(GRAPH, path, provider="cuda")


@pytest.mark.gpu
def test_cuda_session_runs(path: Path) -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA provider")
    with OrtRunner(GRAPH, path, provider="cuda") as runner:
        assert runner.run({"input_ids": np.ones((1, 3), dtype=np.int64)})["logits"].tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize(("found", "is_set"), [(["AVX512_VNNI"], False), ([], True), (None, True)])
def test_products_are_made_exact_only_where_the_processor_does_not(
    monkeypatch: pytest.MonkeyPatch, found: list[str] | None, is_set: bool
) -> None:
    monkeypatch.setattr(ort, "list_instructions", lambda _: found)
    options = ort._make_session_options(onnxruntime, None, {})
    try:
        setting = options.get_session_config_entry("session.x64quantprecision")
    except RuntimeError:  # it was not set
        setting = ""
    assert (setting == "1") == is_set


def test_sums_of_int8_products_do_not_saturate(tmp_path: Path) -> None:
    """On x86 without VNNI, onnxruntime's own choice makes 0.5 of this 64."""
    size = 64
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["rounded", "step", "zero"], ["activation"]),
        helper.make_node("DequantizeLinear", ["w", "step", "zero"], ["weight"]),
        helper.make_node("MatMul", ["activation", "weight"], ["logits"]),
    ]
    constants = [
        helper.make_tensor("step", TensorProto.FLOAT, [], [1 / 127]),
        helper.make_tensor("zero", TensorProto.INT8, [], [0]),
        helper.make_tensor("w", TensorProto.INT8, [size, 4], [127] * 4 * size),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph(nodes, "g", [x], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "int8.onnx")
    spec = dataclasses.replace(
        GRAPH,
        inputs=(TensorSpec("x", "float32", ("batch", size)),),
        outputs=(TensorSpec("logits", "float32", ("batch", 4)),),
    )
    with OrtRunner(spec, tmp_path / "int8.onnx") as runner:
        found = runner.run({"x": np.ones((1, size), np.float32)})["logits"]
    np.testing.assert_allclose(found, size, rtol=1e-5)
