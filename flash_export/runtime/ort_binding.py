"""Running a session on memory of the device it computes on, so that nothing is copied that need not be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from flash_export.errors import BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    from torch import Tensor


class DeviceBuffers:
    """Inputs and outputs of a session in memory of a device, kept from run to run while the shapes stay the same."""

    def __init__(self, ort: ModuleType, session: Any, output_names: Sequence[str], *, device: str = "cuda") -> None:
        """Allocate nothing yet.

        Args:
            ort: The module ``onnxruntime``.
            session: The session.
            output_names: What is to be returned.
            device: Kind of device, as onnxruntime calls it.
        """
        self._ort, self._session, self._device = ort, session, device
        self._output_names = tuple(output_names)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._inputs: dict[str, Any] = {}
        self._outputs: dict[str, Any] = {}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Copy inputs to the device, run, and copy outputs back; arrays are those of the graph's contract."""
        arrays = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        shapes = {name: array.shape for name, array in arrays.items()}
        if shapes != self._shapes:
            self._outputs, self._shapes = {}, {}
            self._inputs = {
                name: self._ort.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype, self._device)
                for name, array in arrays.items()
            }
        binding = self._session.io_binding()
        for name, array in arrays.items():
            self._inputs[name].update_inplace(array)
            # Bound anew for each run: what the graph wants on another device is copied when it is bound
            # (https://github.com/microsoft/onnxruntime/issues/5857).
            binding.bind_ortvalue_input(name, self._inputs[name])
        for name in self._output_names:
            if name in self._outputs:
                binding.bind_ortvalue_output(name, self._outputs[name])
            else:  # onnxruntime allocates them, and knows their shapes
                binding.bind_output(name, self._device)
        self._session.run_with_iobinding(binding)
        self._outputs = dict(zip(self._output_names, binding.get_outputs(), strict=True))
        self._shapes = shapes
        return {name: copy_to_host(value) for name, value in self._outputs.items()}


def run_on_tensors(
    ort: ModuleType, session: Any, output_names: Sequence[str], inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Run a session on tensors of a device, and return its outputs there; nothing is copied.

    What was begun on the current CUDA stream is waited for, and so is the run.

    Raises:
        BackendUnavailableError: This onnxruntime does not share memory with PyTorch.
    """
    import torch

    if not hasattr(ort.OrtValue, "__dlpack__"):
        raise BackendUnavailableError(
            f"onnxruntime {ort.__version__} does not share memory with PyTorch; install version 1.31 or newer"
        )
    tensors = {name: tensor.contiguous() for name, tensor in inputs.items()}
    device = next(iter(tensors.values())).device
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    binding = session.io_binding()
    for name, tensor in tensors.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.from_dlpack(tensor))
    for name in output_names:
        binding.bind_output(name, device.type, device.index or 0)
    session.run_with_iobinding(binding)
    outputs = zip(output_names, binding.get_outputs(), strict=True)
    return {name: torch.utils.dlpack.from_dlpack(value) for name, value in outputs}


def copy_to_host(value: Any) -> np.ndarray:
    """Return a copy: on the CPU, ``OrtValue.numpy`` is a view of memory that the next run writes to."""
    return np.array(value.numpy())
