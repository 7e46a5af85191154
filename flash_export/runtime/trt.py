"""Running a TensorRT engine: on arrays of the host, or on tensors that are on the device and stay there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from flash_export.bundle.bundle import ENGINE_FOLDER
from flash_export.errors import BackendUnavailableError, BundleError
from flash_export.runtime.cuda_device import CudaDevice
from flash_export.runtime.engine_check import check_engine
from flash_export.runtime.inputs import check_inputs, check_shapes
from flash_export.runtime.trt_session import EngineOptions, LoadedEngine

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    import numpy as np
    from torch import Tensor
    from typing_extensions import Self

    from flash_export.bundle.bundle import Bundle
    from flash_export.bundle.manifest import EngineManifest, GraphSpec


def load_engine(bundle: Bundle, engine: EngineManifest, options: EngineOptions | None = None) -> LoadedEngine:
    """Load an engine of a bundle into the memory of the GPU.

    Raises:
        BundleError: The engine file is missing, was changed, belongs to another graph, or cannot be loaded.
        BackendUnavailableError: It was built by another version or for another GPU, there is no CUDA device here, or
            the engine's flavour is not installed.
    """
    if not (status := check_engine(bundle, engine)):
        raise (BundleError if status.is_damaged else BackendUnavailableError)(
            f"engine {engine.name!r} must not be loaded here: {', and '.join(status.differences)}; build it again: "
            f"{status.rebuild}"
        )
    if not torch.cuda.is_available():
        raise BackendUnavailableError(
            f"no CUDA device here; engine {engine.name!r} needs an NVIDIA GPU and a CUDA build of PyTorch"
        )
    return LoadedEngine(engine, bundle.path / ENGINE_FOLDER / f"{engine.name}.engine", CudaDevice(), options)


def open_engine(bundle: Bundle, engine: EngineManifest, options: EngineOptions | None = None) -> TrtRunner:
    """Open an engine of a bundle; errors are those of :func:`load_engine`."""
    return TrtRunner(bundle.get_graph(engine.graph), load_engine(bundle, engine, options))


class TrtRunner:
    """Runs one engine in one session, which is not to be used by two threads at once; frees the engine at the end.

    The scratch memory of a run is allocated for its shapes, not for the largest ones of the profile, so that a generous
    profile costs nothing until it is used. Buffers of the latest shapes are kept.
    """

    def __init__(self, graph: GraphSpec, engine: LoadedEngine) -> None:
        """Open a session of a loaded engine."""
        self._graph, self._engine = graph, engine
        self._session = engine.open_session()
        self._staging: dict[str, Tensor] = {}

    @property
    def name(self) -> str:
        """Name in reports: ``trt:ENGINE``."""
        return f"trt:{self._engine.manifest.name}"

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the engine once and wait for it; bfloat16 outputs come back as float32, which numpy can hold.

        Raises:
            InputError: An input does not fit the graph's contract, or no profile fits its shape.
            BackendUnavailableError: TensorRT reported that the run failed.
        """
        check_inputs(self._graph, inputs)
        binding = self._session.get_binding({name: value.shape for name, value in inputs.items()})
        with self._session.use():
            for name, value in inputs.items():
                staged = self._stage(name, binding.inputs[name])
                staged.copy_(torch.from_numpy(value))
                binding.inputs[name].copy_(staged, non_blocking=True)
            if self._engine.on_host:
                self._session.stream.synchronize()  # what TensorRT reads on the host has to be there
            binding.run()
            staged_outputs = {name: self._stage(name, tensor) for name, tensor in binding.outputs.items()}
            for name, tensor in binding.outputs.items():
                staged_outputs[name].copy_(tensor, non_blocking=True)
            self._session.stream.synchronize()
        return {name: _to_numpy(tensor) for name, tensor in staged_outputs.items()}

    def run_on_device(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Run the engine once on tensors of the device, or on what can be taken as such by DLPack.

        Nothing is copied and nothing waits: what was begun on the current stream comes before, and what follows on it
        comes after. So values are not looked at: ids outside of the vocabulary give any answer.

        Args:
            inputs: Every input of the graph, in the dtype of its contract.

        Returns:
            The outputs, on the device, which are the caller's.

        Raises:
            InputError: A name, dtype or shape does not fit the graph's contract, or no profile fits the shapes.
            BackendUnavailableError: TensorRT reported that the run failed.
        """
        tensors = {name: _to_tensor(value) for name, value in inputs.items()}
        check_shapes(self._graph, tensors)
        placed = {
            name: one.cpu() if name in self._engine.on_host else one.contiguous() for name, one in tensors.items()
        }
        binding = self._session.bind(placed)
        with self._session.use():
            self._session.run(binding)
        self._session.share(binding)
        return binding.outputs

    def _stage(self, name: str, tensor: Tensor) -> Tensor:
        """Return pinned memory for what is copied from or to a tensor."""
        staged = self._staging.get(name)
        if staged is None or staged.shape != tensor.shape or staged.dtype != tensor.dtype:
            staged = self._engine.device.create(tensor.shape, tensor.dtype, on_host=True)
            self._staging[name] = staged
        return staged

    def __enter__(self) -> Self:
        """Return the runner."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free buffers, session and engine."""
        self._staging.clear()
        self._engine.__exit__(kind, error, trace)


def _to_tensor(value: Any) -> Tensor:
    return value if isinstance(value, torch.Tensor) else torch.utils.dlpack.from_dlpack(value)


def _to_numpy(tensor: Tensor) -> np.ndarray:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor.clone()).numpy()
