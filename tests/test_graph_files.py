"""Reading a graph without its weights gives what protobuf's own parser gives, less the weights."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from flash_export.errors import BundleError
from flash_export.exporters.analysis import analyse_graph
from flash_export.graph_files import read_graph, read_without_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def build_model() -> onnx.ModelProto:
    """Return a model that has every kind of field: weights, raw or not, attributes, and a weight in a subgraph."""
    table = numpy_helper.from_array(np.arange(300, dtype=np.float32).reshape(3, 100), "table")
    shift = helper.make_tensor("shift", TensorProto.FLOAT, (2,), [0.5, 1.5])
    inner = helper.make_graph([], "inner", [], [], [numpy_helper.from_array(np.ones(3, np.int64), "inside")])
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"], name="embedding/Gather_0", axis=0),
        helper.make_node("Flatten", ["x"], ["y"], name="layers.0/Flatten_0", body=inner, scale=0.25, names=["a", "b"]),
    ]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "seq"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None])]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, [table, shift]), producer_name="test")


def drop_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
    return model


@pytest.mark.parametrize("external", [False, True])
def test_everything_but_the_weights_is_read(tmp_path: Path, external: bool) -> None:
    path = tmp_path / "a.onnx"
    onnx.save_model(build_model(), path, save_as_external_data=external, location="data", size_threshold=0)
    (tmp_path / "data").unlink(missing_ok=True)
    assert read_without_weights(path) == drop_weights(onnx.load(path, load_external_data=False))
    assert analyse_graph(path).num_parameters == 302


def test_weight_beyond_what_protobuf_can_read_is_stepped_over(tmp_path: Path) -> None:
    size = 3 << 30
    head = TensorProto(name="w", dims=[size // 4], data_type=TensorProto.FLOAT).SerializeToString()
    head += b"\x4a" + encode(size)
    graph = build_model().graph.SerializeToString() + b"\x2a" + encode(len(head) + size) + head
    with (tmp_path / "a.onnx").open("wb") as stream:
        stream.write(b"\x3a" + encode(len(graph) + size) + graph)
        stream.truncate(stream.tell() + size)  # a hole, which takes no space
    assert analyse_graph(tmp_path / "a.onnx").constant_bytes == size + 300 * 4 + 2 * 4


def encode(number: int) -> bytes:
    """Encode as a varint, in Protocol Buffers' own way."""
    return bytes([number & 0x7F | 0x80]) + encode(number >> 7) if number > 0x7F else bytes([number])


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=3),
    length=st.floats(0.5, 1.0) | st.just(1.0),
)
def test_damaged_bytes_are_read_as_protobuf_reads_them(
    tmp_path: Path, changes: list[tuple[float, int]], length: float
) -> None:
    data = bytearray(build_model().SerializeToString())
    for position, value in changes:
        data[int(position * len(data))] = value
    data = data[: int(length * len(data))]
    (tmp_path / "a.onnx").write_bytes(data)
    expected = read_or_refuse(lambda: drop_weights(onnx.ModelProto.FromString(bytes(data))))
    actual = read_or_refuse(lambda: read_without_weights(tmp_path / "a.onnx"))
    assert actual in (expected, None)  # protobuf steps over groups, which onnx never had; we refuse them


def read_or_refuse(read: Callable[[], onnx.ModelProto]) -> bytes | None:
    try:
        return read().SerializeToString(deterministic=True)
    except (DecodeError, ValueError):
        return None


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    data = build_model().SerializeToString().replace(b"embedding/Gather_0", b"embedding/Gather\xff0")
    (tmp_path / "a.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"a\.onnx cannot be read as ONNX \(the name .* is no text\); it is damaged"):
        read_graph(tmp_path / "a.onnx")


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("data", [b"", b"\xff" * 100, b"<html></html>", build_model().SerializeToString()[:-7]])
def test_what_is_no_graph_is_one_line(tmp_path: Path, data: bytes, weights: bool) -> None:
    (tmp_path / "a.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"a\.onnx (cannot be read as|holds no) ONNX.*; it is damaged or of"):
        read_graph(tmp_path / "a.onnx", weights=weights)


def test_weights_are_read_if_they_are_asked_for(tmp_path: Path) -> None:
    onnx.save_model(build_model(), tmp_path / "a.onnx")
    assert read_graph(tmp_path / "a.onnx", weights=True) == build_model()
    assert read_graph(tmp_path / "a.onnx") == drop_weights(build_model())


def test_a_graph_that_is_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.onnx")
    with pytest.raises(BundleError, match=r"a\.onnx is no plain file"):
        read_graph(tmp_path / "a.onnx")
