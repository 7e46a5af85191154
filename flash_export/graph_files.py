"""Reading ONNX files, if need be without their weights, which are nearly all of it: 10 ms in place of 600 for 430 MiB.

protobuf's parser copies every weight. But a message is a row of fields, each a tag, mostly the length of its content,
and the content (https://protobuf.dev/programming-guides/encoding), so that weights can be stepped over.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx

from flash_export.errors import BundleError, describe_reason
from flash_export.reading import check_plain_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VARINT, FIXED_64, LENGTH_DELIMITED, FIXED_32 = 0, 1, 2, 5  # wire types
FIXED_SIZES = {FIXED_64: 8, FIXED_32: 4}
MAX_VARINT_BYTES = 10

GRAPH_TAG = onnx.ModelProto.GRAPH_FIELD_NUMBER << 3 | LENGTH_DELIMITED
INITIALIZER_TAG = onnx.GraphProto.INITIALIZER_FIELD_NUMBER << 3 | LENGTH_DELIMITED
RAW_DATA_TAG = onnx.TensorProto.RAW_DATA_FIELD_NUMBER << 3 | LENGTH_DELIMITED


@dataclass(frozen=True)
class Field:
    """Where a field of a message stands in the file.

    Attributes:
        tag: ``(field number << 3) | wire type``.
        start: Of the tag.
        content: Where the content starts.
        stop: Where the next field starts.
    """

    tag: int
    start: int
    content: int
    stop: int


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
        for field in _list_fields(data, 0, len(data)):
            if field.tag == GRAPH_TAG:
                _merge_graph(model.graph, data, field)
            else:
                model.MergeFromString(data[field.start : field.stop])
    return model


def _merge_graph(graph: onnx.GraphProto, data: mmap.mmap, place: Field) -> None:
    for field in _list_fields(data, place.content, place.stop):
        if field.tag == INITIALIZER_TAG:
            _merge_tensor(graph.initializer.add(), data, field)
        else:
            graph.MergeFromString(data[field.start : field.stop])


def _merge_tensor(tensor: onnx.TensorProto, data: mmap.mmap, place: Field) -> None:
    for field in _list_fields(data, place.content, place.stop):
        if field.tag != RAW_DATA_TAG:
            tensor.MergeFromString(data[field.start : field.stop])


def _list_fields(data: mmap.mmap, start: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message in ``data[start:end]``."""
    while start < end:
        tag, content = _read_varint(data, start)
        wire_type = tag & 7
        if wire_type == LENGTH_DELIMITED:
            size, content = _read_varint(data, content)
            stop = content + size
        elif wire_type == VARINT:
            stop = _read_varint(data, content)[1]
        elif wire_type in FIXED_SIZES:
            stop = content + FIXED_SIZES[wire_type]
        else:
            raise ValueError(f"wire type {wire_type} at byte {start}")
        if stop > end:
            raise ValueError(f"the field at byte {start} ends at byte {stop}, after its message")
        yield Field(tag, start, content, stop)
        start = stop


def _read_varint(data: mmap.mmap, start: int) -> tuple[int, int]:
    """Return a number and where it ends: seven bits a byte, lowest first, the high bit set on all but the last."""
    number = 0
    for index, byte in enumerate(data[start : start + MAX_VARINT_BYTES]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number, start + index + 1
    raise ValueError(f"no number at byte {start}")
