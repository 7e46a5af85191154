"""A graph names the files of its weights, and whatever is not its own is refused, wherever the tensor is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import TensorProto, helper

from flash_export.bundle.external_data import check_external_data, list_external_files
from flash_export.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def make_tensor(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in (("offset", "0"), ("location", location), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def make_graph(location: str) -> onnx.GraphProto:
    return helper.make_graph([], "inner", [], [], [make_tensor(location)])


def put_initializer(model: onnx.ModelProto, location: str) -> None:
    model.graph.initializer.append(make_tensor(location))


def put_sparse_initializer(model: onnx.ModelProto, location: str) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(make_tensor(location))


def put_constant(model: onnx.ModelProto, location: str) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["w"], value=make_tensor(location)))


def put_tensors(model: onnx.ModelProto, location: str) -> None:
    model.graph.node.add(op_type="Odd").attribute.add(name="a", type=onnx.AttributeProto.TENSORS).tensors.append(
        make_tensor(location)
    )


def put_branch(model: onnx.ModelProto, location: str) -> None:
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=make_graph(location)))


def put_function(model: onnx.ModelProto, location: str) -> None:
    function = model.functions.add(name="f", domain="local")
    function.node.append(helper.make_node("Constant", [], ["w"], value=make_tensor(location)))


def put_training(model: onnx.ModelProto, location: str) -> None:
    model.training_info.add().initialization.CopyFrom(make_graph(location))


PLACES = (
    put_initializer,
    put_sparse_initializer,
    put_constant,
    put_tensors,
    put_branch,
    put_function,
    put_training,
)


def write(path: Path, *puts: Callable[[onnx.ModelProto, str], None], location: str = "../secret") -> Path:
    model = onnx.ModelProto(ir_version=10)
    model.graph.name = "g"
    model.graph.initializer.append(helper.make_tensor("inline", TensorProto.FLOAT, [2], [1.0, 2.0]))
    for put in puts:
        put(model, location)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("put", PLACES)
def test_name_is_found_wherever_a_tensor_can_be(tmp_path: Path, put: Callable[[onnx.ModelProto, str], None]) -> None:
    assert list_external_files(write(tmp_path / "a.onnx", put)) == {"../secret"}


def test_graph_with_its_weights_inside_names_none(tmp_path: Path) -> None:
    assert list_external_files(write(tmp_path / "a.onnx")) == set()


@pytest.mark.parametrize("content", [b"", b"\xff", b"no graph", b"\x3a\x05\x08"])
def test_what_is_no_graph_names_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    assert list_external_files(tmp_path / "a.onnx") == set()


def test_name_before_the_damage_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx", put_initializer)
    path.write_bytes(path.read_bytes() + b"\xff")
    assert list_external_files(path) == {"../secret"}


@pytest.mark.parametrize(
    "location",
    ["../../etc/passwd", "/etc/passwd", "*/_ORT_MEM_ADDR_/*", "other", "", "a/../../b", "model.onnx.data/.."],
)
def test_weights_from_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    path = write(tmp_path / "model.onnx", put_initializer, location=location)
    with pytest.raises(
        BundleError, match=r"model.onnx takes weights from '.*', which is not part of it and not opened"
    ):
        check_external_data(path, {"model.onnx.data"})


@pytest.mark.parametrize("location", ["model.onnx.data", "./model.onnx.data"])
def test_weights_from_its_own_file_pass(tmp_path: Path, location: str) -> None:
    check_external_data(write(tmp_path / "model.onnx", put_initializer, location=location), {"model.onnx.data"})


@pytest.mark.parametrize(("location", "passes"), [("w", True), ("a/w", True), ("../w", False), ("/w", False)])
def test_graph_of_others_has_its_weights_below_its_folder(tmp_path: Path, location: str, passes: bool) -> None:
    path = write(tmp_path / "model.onnx", put_initializer, location=location)
    if passes:
        check_external_data(path)
        return
    with pytest.raises(BundleError, match="is not part of it"):
        check_external_data(path)


def test_format_of_onnxruntime_is_refused(tmp_path: Path) -> None:
    os.link(write(tmp_path / "model.onnx"), tmp_path / "model.ort")
    with pytest.raises(BundleError, match=r"model.ort is in onnxruntime's own format"):
        check_external_data(tmp_path / "model.ort")
