"""Writing a graph with one weight in memory at a time.

protobuf would hold all weights twice, in the message and in its serialized form. So the message is kept without them,
and they are streamed into the file: as external data, or, for smaller models, in protobuf's own encoding, where a field
is a tag, its length and its content (https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MIN_WEIGHT_BYTES = 1024
EXTERNAL_DATA_THRESHOLD_BYTES = 1 << 30
EXTERNAL_DATA_ALIGNMENT_BYTES = 4096

# Tags of length-delimited fields: (field number << 3) | 2.
GRAPH_TAG = bytes([onnx.ModelProto.GRAPH_FIELD_NUMBER << 3 | 2])
INITIALIZER_TAG = bytes([onnx.GraphProto.INITIALIZER_FIELD_NUMBER << 3 | 2])
RAW_DATA_TAG = bytes([onnx.TensorProto.RAW_DATA_FIELD_NUMBER << 3 | 2])


@dataclass
class SplitModels:
    """Graphs of one model whose large weights are kept apart.

    Attributes:
        data_file: Name of the file that the weights are written to if they do not stand in the ONNX file.
        skeletons: The graphs, by file name; their large initializers refer to external data.
        weights: Those initializers, by name, in the order of their offsets.
    """

    data_file: str
    skeletons: dict[str, onnx.ModelProto] = field(default_factory=dict)
    weights: dict[str, ir.TensorProtocol] = field(default_factory=dict)

    @property
    def is_external(self) -> bool:
        """Whether the weights are too large for the ONNX file, or belong to several."""
        num_bytes = sum(tensor.nbytes for tensor in self.weights.values())
        return len(self.skeletons) > 1 or num_bytes > EXTERNAL_DATA_THRESHOLD_BYTES

    def add(self, file: str, model: ir.Model) -> onnx.ModelProto:
        """Take the large weights out of a graph, which is of no use afterwards, and return its skeleton.

        Weights that an earlier graph has under the same name are the same, and let go of here. The skeleton is of the
        lowest IR version that its opset has, so that old runtimes take it.

        Args:
            file: Name of the graph's file.
            model: The graph.
        """
        offsets, end = self._lay_out()
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < MIN_WEIGHT_BYTES:
                continue
            if name not in self.weights:
                self.weights[name], offsets[name] = tensor, end
                end += _pad(tensor.nbytes)
            elif not np.array_equal(tensor.numpy(), self.weights[name].numpy()):
                raise RuntimeError(f"two graphs have different weights of the name {name!r}")
            value.const_value = ir.ExternalTensor(
                self.data_file,
                offsets[name],
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=name,
            )
        opset = onnx.helper.make_opsetid("", model.opset_imports[""])
        model.ir_version = onnx.helper.find_min_ir_version_for([opset])
        self.skeletons[file] = ir.to_proto(model)
        return self.skeletons[file]

    def _lay_out(self) -> tuple[dict[str, int], int]:
        """Return the offset of each weight in the data file, and of the next one."""
        offsets, end = {}, 0
        for name, tensor in self.weights.items():
            offsets[name] = end
            end += _pad(tensor.nbytes)
        return offsets, end


def _pad(num_bytes: int) -> int:
    """Round up to the alignment of external data."""
    return num_bytes + -num_bytes % EXTERNAL_DATA_ALIGNMENT_BYTES


def write_models(models: SplitModels, folder: Path) -> None:
    """Write the graphs, and the weights into the only graph's file or, if they are external, into one beside them."""
    if not models.is_external:
        for file, skeleton in models.skeletons.items():
            with (folder / file).open("wb") as stream:
                _write_inline(skeleton, models.weights, stream)
        return
    for file, skeleton in models.skeletons.items():
        (folder / file).write_bytes(skeleton.SerializeToString(deterministic=True))
    with (folder / models.data_file).open("wb") as stream:
        for tensor in models.weights.values():
            stream.write(bytes(-stream.tell() % EXTERNAL_DATA_ALIGNMENT_BYTES))
            stream.write(tensor.tobytes())


def _write_inline(skeleton: onnx.ModelProto, weights: Mapping[str, ir.TensorProtocol], stream: BinaryIO) -> None:
    """Write one ModelProto whose graph field ends with the weights."""
    rest, graph = onnx.ModelProto(), onnx.GraphProto()
    rest.CopyFrom(skeleton)
    graph.CopyFrom(skeleton.graph)
    rest.ClearField("graph")
    del graph.initializer[:]
    graph.initializer.extend(tensor for tensor in skeleton.graph.initializer if tensor.name not in weights)
    graph_start = graph.SerializeToString(deterministic=True)
    heads = {
        tensor.name: onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type).SerializeToString(
            deterministic=True
        )
        + RAW_DATA_TAG
        + _encode_varint(weights[tensor.name].nbytes)
        for tensor in skeleton.graph.initializer
        if tensor.name in weights
    }
    prefixes = {
        name: INITIALIZER_TAG + _encode_varint(len(head) + weights[name].nbytes) + head for name, head in heads.items()
    }
    graph_bytes = len(graph_start) + sum(len(prefixes[name]) + weights[name].nbytes for name in prefixes)
    stream.write(rest.SerializeToString(deterministic=True))
    stream.write(GRAPH_TAG + _encode_varint(graph_bytes) + graph_start)
    for name, prefix in prefixes.items():
        stream.write(prefix)
        stream.write(weights[name].tobytes())


def _encode_varint(number: int) -> bytes:
    """Encode a length: seven bits per byte, lowest first, the high bit set on all but the last."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
