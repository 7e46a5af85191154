"""From a parsed network to the layers of a report: kind, origin, operands, and sizes at each point."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.exporters.engine_report.network import count_bytes
from flash_export.exporters.engine_report.origins import Origins
from flash_export.exporters.engine_report.results import Layer, Output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flash_export.exporters.engine_report.network import NetworkLayer
    from flash_export.exporters.engine_report.results import LayerKind
    from flash_export.runtime.trt_shapes import LayerWork

_KINDS: dict[LayerKind, tuple[str, ...]] = {
    "product": ("MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION", "EINSUM"),
    "pointwise": ("ELEMENTWISE", "ACTIVATION", "UNARY", "SELECT", "PARAMETRIC_RELU", "SCALE", "TRIP_LIMIT"),
    "reduction": ("REDUCE", "CUMULATIVE", "NORMALIZATION", "SOFTMAX", "POOLING", "TOPK", "RAGGED_SOFTMAX"),
    "move": (
        *("SHUFFLE", "SLICE", "GATHER", "SCATTER", "CONCATENATION", "SQUEEZE", "UNSQUEEZE", "PADDING", "IDENTITY"),
        *("FILL", "RESIZE", "SHAPE", "CONSTANT"),
    ),
    "cast": ("CAST", "QUANTIZE", "DEQUANTIZE", "DYNAMIC_QUANTIZE"),
}
_KIND_BY_TYPE: dict[str, LayerKind] = {name: kind for kind, names in _KINDS.items() for name in names}
_DEQUANTIZE = "DEQUANTIZE"
# What an operand may pass between the layer that dequantizes it and the product, without a change of its values.
_PASSING = ("SHUFFLE", "SQUEEZE", "UNSQUEEZE", "IDENTITY")


def describe_layers(
    network: Sequence[NetworkLayer], inputs: Sequence[str], work: Sequence[Mapping[str, LayerWork]]
) -> tuple[Layer, ...]:
    """Return the layers of a report.

    Args:
        network: The layers of the network.
        inputs: Names of its inputs.
        work: What each layer gives, by the name of its output, at each point.
    """
    origins = Origins(network)
    fixed = origins.list_fixed(inputs)
    return tuple(
        Layer(
            name=layer.name,
            type=layer.type,
            kind=_choose_kind(layer, place in fixed),
            dtype=layer.dtype,
            operands=_list_operands(layer, origins),
            part=origins.parts[place],
            nodes=origins.nodes[place],
            shape=layer.shape,
            weights_bytes=layer.weights_bytes,
            outputs=tuple(_measure(layer, at[layer.output]) for at in work),
        )
        for place, layer in enumerate(network)
    )


def _choose_kind(layer: NetworkLayer, is_fixed: bool) -> LayerKind:
    if layer.decides_size:
        return "size"
    return "constant" if is_fixed else _KIND_BY_TYPE.get(layer.type, "other")


def _list_operands(layer: NetworkLayer, origins: Origins) -> tuple[str, ...]:
    if _KIND_BY_TYPE.get(layer.type) != "product":
        return layer.input_dtypes
    names = [name for name in layer.inputs if name is not None]
    return tuple(_find_stored(name, origins) or dtype for name, dtype in zip(names, layer.input_dtypes, strict=True))


def _find_stored(name: str, origins: Origins) -> str | None:
    """Return the dtype of what is dequantized to a value; None if it is not."""
    layer = origins.find_producer(name)
    while layer is not None and layer.type in _PASSING:
        layer = origins.find_producer(layer.inputs[0])
    return layer.input_dtypes[0] if layer is not None and layer.type == _DEQUANTIZE else None


def _measure(layer: NetworkLayer, work: LayerWork) -> Output:
    return Output(work.shape, count_bytes(work.shape, layer.item_bytes), work.flops)
