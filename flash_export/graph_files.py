"""Reading ONNX files, if need be without their weights, which are nearly all of it: 10 ms in place of 600 for 430 MiB.

protobuf's parser copies every weight; here they are stepped over.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import onnx

from flash_export.errors import BundleError, describe_reason
from flash_export.protobuf_fields import LENGTH_DELIMITED, Field, list_fields
from flash_export.reading import check_plain_file

if TYPE_CHECKING:
    from pathlib import Path

GRAPH_TAG = onnx.ModelProto.GRAPH_FIELD_NUMBER << 3 | LENGTH_DELIMITED
INITIALIZER_TAG = onnx.GraphProto.INITIALIZER_FIELD_NUMBER << 3 | LENGTH_DELIMITED
RAW_DATA_TAG = onnx.TensorProto.RAW_DATA_FIELD_NUMBER << 3 | LENGTH_DELIMITED


def read_graph(path: Path, *, weights: bool = False) -> onnx.ModelProto:
    """Read an ONNX file whose names are all text; external data is not read.

    Args:
        path: The file.
        weights: Whether the initializers' ``raw_data`` is read too.

    Raises:
        BundleError: The file cannot be read as ONNX, or holds no graph.
    """
    cure = "it is damaged or of another kind; export it again"
    check_plain_file(path, BundleError, cure)
    try:
        model = onnx.ModelProto.FromString(path.read_bytes()) if weights else read_without_weights(path)
        _check_names(model)
    except Exception as error:  # protobuf's own errors share no base that onnx exports
        raise BundleError(f"{path} cannot be read as ONNX ({describe_reason(error)}); {cure}") from error
    if not model.graph.node:
        raise BundleError(f"{path} holds no ONNX graph; {cure}")
    return model


def _check_names(model: onnx.ModelProto) -> None:
    """Check that what has a name has one: protobuf hands over bytes where a damaged file has no UTF-8."""
    graph = model.graph
    names: list[object] = [model.producer_name, model.producer_version, *(opset.domain for opset in model.opset_import)]
    for node in graph.node:
        names += [node.name, node.op_type, node.domain, *node.input, *node.output]
    for value in (*graph.input, *graph.output):
        names += [value.name, *(dim.dim_param for dim in value.type.tensor_type.shape.dim)]
    for tensor in graph.initializer:
        names += [tensor.name, *(text for entry in tensor.external_data for text in (entry.key, entry.value))]
    if odd := next((name for name in names if not isinstance(name, str)), None):
        raise ValueError(f"the name {odd!r} is no text")


def read_without_weights(path: Path) -> onnx.ModelProto:
    """Return an ONNX model whose initializers have no ``raw_data``; external data is not read either.

    Raises:
        ValueError: The file is empty, or is no protobuf message.
        google.protobuf.message.DecodeError: A message inside it is damaged.
    """
    model = onnx.ModelProto()
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for field in list_fields(data, 0, len(data)):
            if field.tag == GRAPH_TAG:
                _merge_graph(model.graph, data, field)
            else:
                model.MergeFromString(data[field.start : field.stop])
    return model


def _merge_graph(graph: onnx.GraphProto, data: mmap.mmap, place: Field) -> None:
    for field in list_fields(data, place.content, place.stop):
        if field.tag == INITIALIZER_TAG:
            _merge_tensor(graph.initializer.add(), data, field)
        else:
            graph.MergeFromString(data[field.start : field.stop])


def _merge_tensor(tensor: onnx.TensorProto, data: mmap.mmap, place: Field) -> None:
    for field in list_fields(data, place.content, place.stop):
        if field.tag != RAW_DATA_TAG:
            tensor.MergeFromString(data[field.start : field.stop])
