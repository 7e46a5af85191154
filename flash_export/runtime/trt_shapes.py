"""How large every value of a parsed TensorRT network is for inputs of given shapes, and the work of its products.

Nothing but sizes is computed: values are tensors of PyTorch's ``meta`` device, which have a shape and no memory, so
that the largest profile of an engine costs no more than the smallest. What decides a size has to be known, though:
TensorRT calls these values shape tensors, and they are computed as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from flash_export.errors import BackendUnavailableError
from flash_export.runtime.trt_api import name_dtype
from flash_export.runtime.trt_layers import to_tensor
from flash_export.runtime.trt_steps import CONSTANT, TORCH_DTYPES, Step, make_step, sort_steps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from flash_export.runtime.trt_api import ParsedNetwork

# The inputs of a layer that say sizes, starts or an axis, and are read even where the layer itself decides no size.
_SIZE_INPUTS = {
    "SLICE": (1, 2, 3, 5),
    "SHUFFLE": (1,),
    "FILL": (0,),
    "SQUEEZE": (1,),
    "UNSQUEEZE": (1,),
    "CUMULATIVE": (1,),
}
_META = torch.device("meta")


@dataclass(frozen=True)
class LayerWork:
    """What a layer gives at one shape of the inputs.

    Attributes:
        shape: Of its output.
        flops: Floating-point operations of a matrix product or convolution, two for each product of two numbers; 0 for
            all other layers.
    """

    shape: tuple[int, ...]
    flops: int


class NetworkShapes:
    """The layers of a network, ready to be measured at any shape of its inputs."""

    def __init__(self, parsed: ParsedNetwork) -> None:
        """Take a network; its layers are cast to their classes, which hides the type of some of them.

        Raises:
            BackendUnavailableError: Nothing here computes one of its layers, or an input decides a size by its values.
        """
        network = parsed.network
        self._inputs = [network.get_input(index) for index in range(network.num_inputs)]
        for tensor in self._inputs:
            if tensor.is_shape_tensor:
                raise BackendUnavailableError(f"sizes depend on the values of the input {tensor.name!r}")
        self._constants: dict[str, Tensor] = {}
        self._sizes: set[str] = set()
        steps = {}
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            output = layer.get_output(0)
            if output.is_shape_tensor:
                self._sizes.add(output.name)
            if layer.type.name == CONSTANT:
                layer.__class__ = parsed.trt.IConstantLayer
                self._constants[output.name] = self._read_constant(layer)
            else:
                step = make_step(parsed.trt, layer)
                steps[step.output] = step
        self._steps = sort_steps(steps, steps)

    def measure(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, LayerWork]:
        """Return the output and work of every layer, by the name of its output.

        Args:
            shapes: Of the inputs, by name.

        Raises:
            BackendUnavailableError: A layer is used in a way that nothing here computes.
            BundleError: Layers do not go together at these shapes.
        """
        values = dict(self._constants)
        for tensor in self._inputs:
            values[tensor.name] = torch.empty(
                tuple(shapes[tensor.name]), dtype=TORCH_DTYPES.get(name_dtype(tensor.dtype)), device=_META
            )
        work = {name: LayerWork(tuple(value.shape), 0) for name, value in self._constants.items()}
        for step in self._steps:
            inputs = [None if name is None else values[name] for name in step.inputs]
            output = step.run(inputs) if step.output in self._sizes else _run_without_values(step, inputs)
            values[step.output] = output
            work[step.output] = LayerWork(tuple(output.shape), _count_flops(step, inputs, output))
        return work

    def _read_constant(self, layer: Any) -> Tensor:
        """Return the values of a constant that decides a size; only the shape of any other."""
        output, shape = layer.get_output(0), tuple(layer.shape)
        dtype = TORCH_DTYPES.get(name_dtype(output.dtype), torch.uint8)
        if output.name in self._sizes:
            return to_tensor(layer.weights).to(dtype).reshape(shape)
        return torch.empty(shape, dtype=dtype, device=_META)


def _run_without_values(step: Step, inputs: Sequence[Tensor | None]) -> Tensor:
    read = _SIZE_INPUTS.get(step.kind, ())
    shown = [x if x is None or place in read else x.to(_META) for place, x in enumerate(inputs)]
    with _META:
        return step.run(shown)


def _count_flops(step: Step, inputs: Sequence[Tensor | None], output: Tensor) -> int:
    layer, x = step.layer, inputs[0]
    if x is None:
        return 0
    if step.kind == "MATRIX_MULTIPLY":
        summed = x.shape[-2] if layer.op0.name == "TRANSPOSE" else x.shape[-1]
        return 2 * output.numel() * summed
    if step.kind == "ATTENTION_INPUT" and (keys := inputs[1]) is not None:
        return 4 * output.numel() * keys.shape[2]  # both products
    if step.kind == "CONVOLUTION":
        return 2 * output.numel() * (x.shape[1] // layer.num_groups) * math.prod(layer.kernel_size_nd)
    if step.kind == "DECONVOLUTION":
        return 2 * x.numel() * (layer.num_output_maps // layer.num_groups) * math.prod(layer.kernel_size_nd)
    return 0
