"""The reference: the plain PyTorch model, run as it is. Everything else is compared with this."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from flash_export.errors import BackendUnavailableError
from flash_export.runtime.inputs import check_content, check_input_names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    import numpy as np
    from typing_extensions import Self

    from flash_export.models.base import ReferenceModel

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class EagerRunner:
    """Runs a reference model, without autograd.

    Entering the runner moves the model to its device and sets the number of threads; leaving it puts both back.
    """

    def __init__(
        self, model: ReferenceModel, *, device: str = "cpu", threads: int | None = None, precision: str = "fp32"
    ) -> None:
        """Wrap a model.

        Args:
            model: Reference model in fp32 and evaluation mode. For another precision its parameters are converted, and
                stay so: give it one of its own.
            device: ``cpu`` or ``cuda``.
            threads: Threads of one operator on the CPU; None: what PyTorch chooses.
            precision: ``fp64``, in which the frequencies of positions are exact too, ``fp32``, ``fp16`` or ``bf16``.

        Raises:
            BackendUnavailableError: ``cuda`` was asked for and PyTorch sees no GPU.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise BackendUnavailableError("PyTorch sees no CUDA device; use device='cpu' or install a CUDA build")
        self._model, self._dtype = _convert(model, DTYPES[precision]), DTYPES[precision]
        self._call: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]] = self._model
        self._device = torch.device(device)
        self._threads = threads
        self._threads_before = torch.get_num_threads()

    @property
    def name(self) -> str:
        """Name in reports."""
        return "eager"

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs of the model's interface for its inputs and, optionally, its mask.

        Real-valued inputs are converted to the precision of the model.

        Raises:
            InputError: An input is missing or unknown, or an id is not in the vocabulary.
        """
        interface = self._model.config.interface
        optional = () if interface.mask is None else (interface.mask.name,)
        check_input_names(inputs, required=[spec.name for spec in interface.inputs], optional=optional)
        for spec in interface.inputs:
            if spec.content is not None:
                check_content(spec.name, inputs[spec.name], spec.content)
        with torch.inference_mode():
            found = self._call(**{name: self._to_tensor(value) for name, value in inputs.items()})
        values = (found,) if isinstance(found, torch.Tensor) else found
        return {spec.name: _to_array(value) for spec, value in zip(interface.outputs, values, strict=True)}

    def _to_tensor(self, values: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(values).to(self._device)
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    def __enter__(self) -> Self:
        """Move the model to the device."""
        self._model.to(self._device)
        if self._threads is not None:
            self._threads_before = torch.get_num_threads()
            torch.set_num_threads(self._threads)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the model and the number of threads back."""
        self._model.to("cpu")
        if self._threads is not None:
            torch.set_num_threads(self._threads_before)


class CompiledRunner(EagerRunner):
    """Runs a reference model in fp32 under ``torch.compile``, for any length; the first runs compile it."""

    def __init__(self, model: ReferenceModel, *, device: str = "cpu", threads: int | None = None) -> None:
        """Wrap a model; see :class:`EagerRunner`."""
        super().__init__(model, device=device, threads=threads)
        self._call = torch.compile(model, dynamic=True)

    @property
    def name(self) -> str:
        """Name in reports."""
        return "compile"


def _to_array(values: torch.Tensor) -> np.ndarray:
    return (values.float() if values.dtype == torch.bfloat16 else values).cpu().numpy()  # numpy has no bfloat16


def _convert(model: ReferenceModel, dtype: torch.dtype) -> ReferenceModel:
    """Convert the parameters; angles stay in fp32 at least: half precision cannot tell large positions apart."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.double() if dtype == torch.float64 else model
