"""Buffers on a device: the CPU stands in for it, with the real onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from flash_export.errors import BackendUnavailableError, InputError
from flash_export.runtime.ort import OrtRunner
from flash_export.runtime.ort_binding import DeviceBuffers, run_on_tensors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle


class Watched:
    """A session that counts what is allocated and which outputs are bound to what was there before."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.bound: list[tuple[str, str]] = []

    def io_binding(self) -> Any:
        binding, bound = self.session.io_binding(), self.bound

        def watch(kind: str) -> Callable[..., None]:
            bind = getattr(binding, kind)

            def record(name: str, *arguments: Any) -> None:
                bound.append((kind, name))
                bind(name, *arguments)

            return record

        for kind in ("bind_ortvalue_input", "bind_ortvalue_output", "bind_output"):
            setattr(binding, kind, watch(kind))
        return binding

    def run_with_iobinding(self, binding: Any) -> None:
        self.session.run_with_iobinding(binding)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    """Twice a tensor, and the sum of its rows."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["double"]),
        helper.make_node("ReduceSum", ["x", "axes"], ["sums"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "seq"])],
        [
            helper.make_tensor_value_info("double", TensorProto.FLOAT, ["batch", "seq"]),
            helper.make_tensor_value_info("sums", TensorProto.FLOAT, ["batch"]),
        ],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "m.onnx")
    return Watched(tmp_path / "m.onnx")


OUTPUTS = ["sums", "double"]


def test_buffers_are_kept_while_shapes_repeat(watched: Watched) -> None:
    buffers = DeviceBuffers(onnxruntime, watched, OUTPUTS, device="cpu")
    random, results = np.random.default_rng(0), []
    for shape in ((2, 3), (2, 3), (1, 5), (2, 3)):
        x = random.standard_normal(shape).astype(np.float32)
        found = buffers.run({"x": x})
        assert list(found) == OUTPUTS
        results.append((x, found))
    for x, found in results:  # at the end: no result is a view of a buffer that a later run wrote to
        np.testing.assert_allclose(found["double"], 2 * x)
        np.testing.assert_allclose(found["sums"], x.sum(-1), rtol=1e-5)
    fresh, kept = [("bind_output", name) for name in OUTPUTS], [("bind_ortvalue_output", name) for name in OUTPUTS]
    taken = [("bind_ortvalue_input", "x")]  # for each run, see there
    assert watched.bound == [*taken, *fresh, *taken, *kept, *taken, *fresh, *taken, *fresh]


def test_arrays_that_are_not_contiguous_are_taken(watched: Watched) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    found = DeviceBuffers(onnxruntime, watched, ["double"], device="cpu").run({"x": x.T})
    np.testing.assert_array_equal(found["double"], 2 * x.T)


def test_tensors_are_neither_copied_nor_moved(watched: Watched) -> None:
    x = torch.arange(6.0).reshape(2, 3)
    found = run_on_tensors(onnxruntime, watched, OUTPUTS, {"x": x})
    assert torch.equal(found["double"], 2 * x)
    again = run_on_tensors(onnxruntime, watched, OUTPUTS, {"x": x + 1})
    assert torch.equal(found["double"], 2 * x)  # the caller's, whatever runs next
    assert torch.equal(again["sums"], (x + 1).sum(-1))


def test_runner_gives_the_same_on_arrays_on_tensors_and_bound(causal_byte_bundle: Bundle) -> None:
    tokens = np.random.default_rng(0).integers(0, 257, (2, 21))
    graph, path = causal_byte_bundle.get_graph(), causal_byte_bundle.get_graph_path()
    with OrtRunner(graph, path, threads=1) as runner:
        expected = runner.run({"input_ids": tokens})["logits"]
        on_device = runner.run_on_device({"input_ids": torch.from_numpy(tokens)})["logits"]
        bound = DeviceBuffers(onnxruntime, runner._session, ["logits"], device="cpu").run({"input_ids": tokens})
        with pytest.raises(InputError, match="dtype int32"):
            runner.run_on_device({"input_ids": torch.from_numpy(tokens).int()})
    np.testing.assert_array_equal(on_device.numpy(), expected)
    np.testing.assert_array_equal(bound["logits"], expected)


def test_old_onnxruntime_says_which_is_needed(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(onnxruntime.OrtValue, "__dlpack__")
    with pytest.raises(BackendUnavailableError, match=r"does not share memory with PyTorch; install version 1\.31"):
        run_on_tensors(onnxruntime, watched, OUTPUTS, {"x": torch.zeros(1, 1)})
