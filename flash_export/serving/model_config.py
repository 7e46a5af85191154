"""``config.pbtxt``: what Triton is told of a model, as plain values that Triton's own protobuf checks.

The fields are those of ``model_config.proto`` of https://github.com/triton-inference-server/common.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flash_export.errors import BackendUnavailableError, BundleError
from flash_export.install import get_install_command
from flash_export.interface import BATCH
from flash_export.serving.options import CPU

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from flash_export.bundle.manifest import AxisRange, GraphSpec
    from flash_export.interface import TensorSpec
    from flash_export.serving.options import TritonOptions

CONFIG_FILE = "config.pbtxt"
_DATA_TYPES = {
    "bool": "TYPE_BOOL",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    **{f"{sign}int{bits}": f"TYPE_{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
Config = dict[str, Any]


def format_config(values: Mapping[str, Any]) -> str:
    """Return the text of ``config.pbtxt``, once Triton's own protobuf has read it.

    Raises:
        BackendUnavailableError: ``tritonclient``, which has that protobuf, is not installed.
    """
    try:
        from google.protobuf import json_format, text_format
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise BackendUnavailableError(f"tritonclient is not installed; {get_install_command('triton')}") from error
    message = json_format.ParseDict(dict(values), model_config_pb2.ModelConfig())
    text = text_format.MessageToString(message)
    text_format.Parse(text, model_config_pb2.ModelConfig())
    return text


def get_data_type(dtype: str) -> str:
    """Return what Triton calls a dtype.

    Raises:
        BundleError: It has no such type.
    """
    try:
        return _DATA_TYPES[dtype]
    except KeyError:
        raise BundleError(
            f"Triton has no type for {dtype}; serve a bundle whose inputs and outputs are others"
        ) from None


def has_batch_axis(graph: GraphSpec) -> bool:
    """Tell whether Triton may batch requests: any batch is taken, and it is the first axis of every tensor."""
    is_first = all(spec.shape[0] == BATCH for spec in (*graph.inputs, *graph.outputs))
    return is_first and graph.axes[BATCH].min == 1


def describe_tensor(spec: TensorSpec, axes: Mapping[str, AxisRange], *, is_batched: bool) -> Config:
    """Return the entry of an input or output; of one that is batched, Triton leaves the batch out."""
    dims = [_size_axis(size, axes) for size in spec.shape[is_batched:]]
    entry: Config = {"name": spec.name, "data_type": get_data_type(spec.dtype), "dims": dims or [1]}
    return entry if dims else {**entry, "reshape": {"shape": []}}


def _size_axis(size: int | str, axes: Mapping[str, AxisRange]) -> int:
    if isinstance(size, int):
        return size
    return axes[size].min if size in axes and axes[size].min == axes[size].max else -1


def describe_parameters(values: Mapping[str, object]) -> Config:
    """Return ``parameters``: text by name, which the backend and whoever asks for the configuration can read."""
    return {name: {"string_value": str(value)} for name, value in values.items()}


def describe_instances(options: TritonOptions) -> list[Config]:
    """Return the copies of a model that run at the same time."""
    return [{"count": options.instances, "kind": "KIND_CPU" if options.device == CPU else "KIND_GPU"}]


def describe_batching(options: TritonOptions) -> Config:
    """Return how requests are batched: those that wait, and no more of them than may wait."""
    return {
        "max_queue_delay_microseconds": options.queue_delay_us,
        "default_queue_policy": {"max_queue_size": options.max_waiting},
    }


def describe_warm_up(
    specs: Iterable[TensorSpec], shapes: Iterable[Mapping[str, int]], *, is_batched: bool
) -> list[Config]:
    """Return requests that the server answers itself before the model is ready: zeros, which every input may hold.

    Args:
        specs: The inputs.
        shapes: Sizes of the symbolic axes of each request.
        is_batched: Whether Triton leaves the batch out.
    """
    return [
        {
            "name": " ".join(f"{axis} {size}" for axis, size in sizes.items()),
            **({"batch_size": sizes[BATCH]} if is_batched else {}),
            "inputs": {
                spec.name: {
                    "data_type": get_data_type(spec.dtype),
                    "dims": [one if isinstance(one, int) else sizes[one] for one in spec.shape[is_batched:]],
                    "zero_data": True,
                }
                for spec in specs
            },
        }
        for sizes in shapes
    ]
