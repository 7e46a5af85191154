"""The layers of a parsed TensorRT network as plain data, before anything is said of where they came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flash_export.runtime.trt_api import name_dtype
from flash_export.runtime.trt_metadata import parse_metadata
from flash_export.runtime.trt_steps import CONSTANT, read_shape

if TYPE_CHECKING:
    from flash_export.runtime.trt_api import ParsedNetwork

# Layers that may hold weights of their own, in place of inputs.
_CONVOLUTIONS = {"CONVOLUTION": "IConvolutionLayer", "DECONVOLUTION": "IDeconvolutionLayer"}


@dataclass(frozen=True)
class NetworkLayer:
    """One layer.

    Attributes:
        name: Its name in the network.
        type: Name of TensorRT's layer type, such as ``MATRIX_MULTIPLY``.
        nodes: The ONNX nodes that the parser says it came from; none for the parser's helpers and for constants.
        inputs: Names of its inputs; None for one that it does without.
        input_dtypes: Their dtypes, without those that it does without.
        output: Name of its first output.
        dtype: Of that.
        item_bytes: Bytes of one number of it; half a byte for types of 4 bits.
        shape: As TensorRT inferred it, -1 for a free size; None where it could not.
        decides_size: Whether it gives what TensorRT calls a shape tensor: values that decide the sizes of others.
        weights_bytes: Bytes of the weights that it holds.
    """

    name: str
    type: str
    nodes: tuple[str, ...]
    inputs: tuple[str | None, ...]
    input_dtypes: tuple[str, ...]
    output: str
    dtype: str
    item_bytes: float
    shape: tuple[int, ...] | None
    decides_size: bool
    weights_bytes: int


def read_network(parsed: ParsedNetwork) -> tuple[NetworkLayer, ...]:
    """Return all layers, in the order of the network; to be called before anything casts them to their classes."""
    network = parsed.network
    return tuple(_read_layer(parsed.trt, network.get_layer(index)) for index in range(network.num_layers))


def _read_layer(trt: Any, layer: Any) -> NetworkLayer:
    kind, output = layer.type.name, layer.get_output(0)
    inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
    shape, item_bytes = read_shape(output), output.dtype.itemsize
    return NetworkLayer(
        name=layer.name,
        type=kind,
        nodes=parse_metadata(layer.metadata),
        inputs=tuple(None if tensor is None else tensor.name for tensor in inputs),
        input_dtypes=tuple(name_dtype(tensor.dtype) for tensor in inputs if tensor is not None),
        output=output.name,
        dtype=name_dtype(output.dtype),
        item_bytes=item_bytes,
        shape=shape,
        decides_size=output.is_shape_tensor,
        weights_bytes=count_bytes(shape or (), item_bytes)
        if kind == CONSTANT
        else _count_own_weights(trt, kind, layer),
    )


def count_bytes(shape: tuple[int, ...], item_bytes: float) -> int:
    """Return the bytes of a tensor, whole ones.

    >>> count_bytes((3, 5), 0.5)
    8
    """
    count = 1
    for size in shape:
        count *= size
    return -int(-count * item_bytes // 1)


def _count_own_weights(trt: Any, kind: str, layer: Any) -> int:
    if kind not in _CONVOLUTIONS:
        return 0
    layer.__class__ = getattr(trt, _CONVOLUTIONS[kind])
    return sum(_count_weights(weights) for weights in (layer.kernel, layer.bias))


def _count_weights(weights: Any) -> int:
    """Return the bytes of weights: an array, or what TensorRT has in place of one for types that numpy lacks."""
    return (
        int(weights.nbytes) if isinstance(weights, np.ndarray) else int(-(-weights.size * weights.dtype.itemsize // 1))
    )
