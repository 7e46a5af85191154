"""Writing a graph with one weight in memory at a time.

protobuf would hold all weights twice, in the message and in its serialized form. So the message is kept without them,
and they are streamed into the file: as external data, or, for smaller models, in protobuf's own encoding, where a field
is a tag, its length and its content (https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import onnx
import onnx_ir as ir

if TYPE_CHECKING:
    from pathlib import Path

MIN_WEIGHT_BYTES = 1024
EXTERNAL_DATA_THRESHOLD_BYTES = 1 << 30
EXTERNAL_DATA_ALIGNMENT_BYTES = 4096

# Tags of length-delimited fields: (field number << 3) | 2.
GRAPH_TAG = bytes([onnx.ModelProto.GRAPH_FIELD_NUMBER << 3 | 2])
INITIALIZER_TAG = bytes([onnx.GraphProto.INITIALIZER_FIELD_NUMBER << 3 | 2])
RAW_DATA_TAG = bytes([onnx.TensorProto.RAW_DATA_FIELD_NUMBER << 3 | 2])


@dataclass(frozen=True)
class SplitModel:
    """A graph whose large weights are kept apart.

    Attributes:
        skeleton: The model; its large initializers refer to external data.
        weights: Those initializers, by name, in the order of their offsets.
        data_file: Name of the file that they are written to if they are large.
    """

    skeleton: onnx.ModelProto
    weights: dict[str, ir.TensorProtocol]
    data_file: str

    @property
    def is_external(self) -> bool:
        """Whether the weights are too large to stand in the ONNX file."""
        return sum(tensor.nbytes for tensor in self.weights.values()) > EXTERNAL_DATA_THRESHOLD_BYTES


def split_weights(model: ir.Model, data_file: str) -> SplitModel:
    """Take the large weights out of a model, which is of no use afterwards.

    Args:
        model: The graph.
        data_file: Name of the file for external data, in case the weights need one.
    """
    weights: dict[str, ir.TensorProtocol] = {}
    offset = 0
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < MIN_WEIGHT_BYTES:
            continue
        weights[name] = tensor
        value.const_value = ir.ExternalTensor(
            data_file, offset, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
        )
        offset += tensor.nbytes + -tensor.nbytes % EXTERNAL_DATA_ALIGNMENT_BYTES
    return SplitModel(ir.to_proto(model), weights, data_file)


def write_model(model: SplitModel, path: Path) -> None:
    """Write the graph, its weights in the same file or, over 1 GiB, beside it."""
    if not model.is_external:
        with path.open("wb") as stream:
            _write_inline(model, stream)
        return
    path.write_bytes(model.skeleton.SerializeToString(deterministic=True))
    with path.with_name(model.data_file).open("wb") as stream:
        for tensor in model.weights.values():
            stream.write(bytes(-stream.tell() % EXTERNAL_DATA_ALIGNMENT_BYTES))
            stream.write(tensor.tobytes())


def _write_inline(model: SplitModel, stream: BinaryIO) -> None:
    """Write one ModelProto whose graph field ends with the weights."""
    rest, graph = onnx.ModelProto(), onnx.GraphProto()
    rest.CopyFrom(model.skeleton)
    graph.CopyFrom(model.skeleton.graph)
    rest.ClearField("graph")
    del graph.initializer[:]
    graph.initializer.extend(tensor for tensor in model.skeleton.graph.initializer if tensor.name not in model.weights)
    graph_start = graph.SerializeToString(deterministic=True)
    heads = {
        tensor.name: onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type).SerializeToString(
            deterministic=True
        )
        + RAW_DATA_TAG
        + _encode_varint(model.weights[tensor.name].nbytes)
        for tensor in model.skeleton.graph.initializer
        if tensor.name in model.weights
    }
    prefixes = {
        name: INITIALIZER_TAG + _encode_varint(len(head) + model.weights[name].nbytes) + head
        for name, head in heads.items()
    }
    graph_bytes = len(graph_start) + sum(len(prefixes[name]) + model.weights[name].nbytes for name in prefixes)
    stream.write(rest.SerializeToString(deterministic=True))
    stream.write(GRAPH_TAG + _encode_varint(graph_bytes) + graph_start)
    for name, prefix in prefixes.items():
        stream.write(prefix)
        stream.write(model.weights[name].tobytes())


def _encode_varint(number: int) -> bytes:
    """Encode a length: seven bits a byte, lowest first, the high bit set on all but the last."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
