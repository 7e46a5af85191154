"""What a parsed TensorRT network is: its tensors and layers, checked against the contract of the graph."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flash_export.errors import EngineBuildError
from flash_export.runtime.trt_api import name_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flash_export.bundle.manifest import GraphSpec
    from flash_export.interface import TensorSpec

_DYNAMIC = -1


def read_tensors(network: Any, graph: GraphSpec) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and outputs of a network, with dynamic axes named as in the manifest.

    Raises:
        EngineBuildError: Names, dtypes or shapes are not those that the manifest promises.
    """
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return _match_specs("inputs", inputs, graph.inputs, graph), _match_specs("outputs", outputs, graph.outputs, graph)


def count_layer_dtypes(network: Any) -> dict[str, int]:
    """Return the number of layers by the dtype of their first output, most frequent first."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    dtypes = Counter(name_dtype(layer.get_output(0).dtype) for layer in layers if layer.num_outputs)
    return dict(dtypes.most_common())


def _match_specs(
    kind: str, tensors: Sequence[Any], specs: tuple[TensorSpec, ...], graph: GraphSpec
) -> tuple[TensorSpec, ...]:
    actual, expected = [tensor.name for tensor in tensors], [spec.name for spec in specs]
    if actual != expected:
        raise EngineBuildError(
            f"{graph.file}: the network's {kind} are {', '.join(actual)}, the manifest says {', '.join(expected)}; "
            "export the bundle again"
        )
    return tuple(_match_spec(tensor, spec, graph) for tensor, spec in zip(tensors, specs, strict=True))


def _match_spec(tensor: Any, spec: TensorSpec, graph: GraphSpec) -> TensorSpec:
    dtype, shape = name_dtype(tensor.dtype), tuple(tensor.shape)
    expected = tuple(_DYNAMIC if isinstance(size, str) else size for size in spec.shape)
    if dtype != spec.dtype or shape != expected:
        raise EngineBuildError(
            f"{graph.file}: the network has {spec.name} as {dtype} {_format_shape(shape)}, the manifest says "
            f"{spec.dtype} {_format_shape(expected)}; export the bundle again"
        )
    return replace(spec, dtype=dtype)


def _format_shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
