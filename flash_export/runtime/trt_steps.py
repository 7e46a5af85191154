"""The layers of a parsed TensorRT network as steps that PyTorch can take, in an order in which they can be taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from flash_export.errors import BackendUnavailableError, BundleError
from flash_export.runtime.trt_api import name_dtype
from flash_export.runtime.trt_layers import LAYERS, UnknownLayerError, compute_activation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor

NAME = "trt-network"
CONSTANT = "CONSTANT"
TORCH_DTYPES = {
    name: getattr(torch, name)
    for name in ("float32", "float16", "bfloat16", "float8_e4m3fn", "int64", "int32", "int8", "uint8", "bool")
} | {"int4": torch.int8}


class Step:
    """One layer of a network, ready to be computed."""

    def __init__(self, kind: str, layer: Any, compute: Callable[[Any, Sequence[Tensor | None]], Tensor]) -> None:
        """Take the name of a layer's type, the layer, cast to its class, and what computes it."""
        self.name, self.kind, self.layer, self.compute = layer.name, kind, layer, compute
        tensors = [layer.get_input(index) for index in range(layer.num_inputs)]
        self.inputs = [None if tensor is None else tensor.name for tensor in tensors]
        output = layer.get_output(0)
        self.output, self.dtype = output.name, TORCH_DTYPES.get(name_dtype(output.dtype))
        self.shape = read_shape(output)

    def run(self, inputs: Sequence[Tensor | None]) -> Tensor:
        """Compute the layer's output, in its dtype.

        Raises:
            BackendUnavailableError: Nothing here computes the layer as it is used.
            BundleError: Its inputs do not go together, or an index leaves an axis.
        """
        try:
            output = self.compute(self.layer, inputs)
        except UnknownLayerError as error:
            raise BackendUnavailableError(f"layer {self.name!r} {error}, which {NAME} does not compute") from error
        except (RuntimeError, IndexError, ValueError) as error:
            shapes = ", ".join(str(tuple(x.shape)) for x in inputs if x is not None)
            reason = str(error).splitlines()[0]
            raise BundleError(
                f"layer {self.name!r} of the network that TensorRT's parser made fails on {shapes}: {reason}; export "
                "the bundle again, and report it if that is no help"
            ) from error
        if self.shape is not None and not _fits(output.shape, self.shape):
            raise BundleError(
                f"layer {self.name!r} of the network that TensorRT's parser made gives {tuple(output.shape)}, which "
                f"TensorRT takes for {self.shape}; export the bundle again, and report it if that is no help"
            )
        return output if self.dtype is None or output.dtype == self.dtype else output.to(self.dtype)


def make_step(trt: Any, layer: Any) -> Step:
    """Cast a layer that is no constant to its class, and return it with what computes it.

    Raises:
        BackendUnavailableError: Nothing here computes layers of its type.
    """
    kind = layer.type.name
    if kind == "ACTIVATION":
        layer.__class__ = trt.IActivationLayer
        return Step(kind, layer, _bind_activation(trt.IActivationLayer.type.__get__(layer)))
    if kind not in LAYERS:
        raise BackendUnavailableError(f"layer {layer.name!r} is a {kind}, which {NAME} does not compute")
    owner, compute = LAYERS[kind]
    layer.__class__ = getattr(trt, owner)
    return Step(kind, layer, compute)


def sort_steps(steps: Mapping[str, Step], wanted: Iterable[str]) -> list[Step]:
    """Return the steps that some values need, each after what it needs itself; networks are in no order.

    Args:
        steps: The steps by the names of their outputs.
        wanted: Names of the values.
    """
    ordered: dict[str, Step] = {}
    stack = [(name, False) for name in sorted(wanted)]
    while stack:
        name, is_ready = stack.pop()
        if name in ordered or name not in steps:
            continue
        if is_ready:
            ordered[name] = steps[name]
            continue
        stack.append((name, True))
        stack.extend((one, False) for one in steps[name].inputs if one)
    return list(ordered.values())


def read_shape(tensor: Any) -> tuple[int, ...] | None:
    """Return the shape that TensorRT inferred; None where it could infer none, because layers do not go together."""
    try:
        return tuple(tensor.shape)
    except RuntimeError:
        return None


def _fits(shape: Sequence[int], inferred: Sequence[int]) -> bool:
    """Tell whether a shape is what TensorRT inferred, in which free sizes are -1."""
    return len(shape) == len(inferred) and all(known in (-1, size) for size, known in zip(shape, inferred, strict=True))


def _bind_activation(kind: Any) -> Callable[[Any, Sequence[Tensor | None]], Tensor]:
    return lambda layer, inputs: compute_activation(kind, layer, inputs)
