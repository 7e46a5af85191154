"""Running a TensorRT engine, with PyTorch's CUDA tensors as its device memory."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch

from flash_export.config import FLAVOURS
from flash_export.errors import BackendUnavailableError, BundleError
from flash_export.runtime.engine_check import check_engine
from flash_export.runtime.inputs import check_inputs
from flash_export.runtime.profile_choice import choose_profile
from flash_export.runtime.trt_api import import_flavour
from flash_export.runtime.trt_log import collect_errors, get_log

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    from typing_extensions import Self

    from flash_export.bundle.bundle import Bundle
    from flash_export.bundle.manifest import EngineManifest, GraphSpec
    from flash_export.runtime.runner import Runner


def open_engine(bundle: Bundle, engine: EngineManifest) -> Runner:
    """Open an engine of a bundle.

    Raises:
        BundleError: The engine file is missing, was changed, belongs to another graph, was built by another version or
            for another GPU, or cannot be loaded.
        BackendUnavailableError: There is no CUDA device here, or the engine's flavour is not installed.
    """
    if not (status := check_engine(bundle, engine)):
        raise BundleError(
            f"engine {engine.name!r} must not be loaded here: {', and '.join(status.differences)}; build it again: "
            f"{status.rebuild}"
        )
    return TrtRunner(bundle.get_graph(engine.graph), engine, bundle.get_engine_path(engine))


class TrtRunner:
    """Runs one engine.

    The scratch memory of a run is allocated for the shapes of that run, not for the largest ones of the profile, so
    that a generous profile costs nothing until it is used.
    """

    def __init__(self, graph: GraphSpec, engine: EngineManifest, path: Path) -> None:
        """Load an engine whose file was found to be what its manifest says.

        Raises:
            BackendUnavailableError: There is no CUDA device here, or the engine's flavour is not installed.
            BundleError: TensorRT cannot load the file: it is of another version, or for another GPU.
        """
        if not torch.cuda.is_available():
            raise BackendUnavailableError(
                f"no CUDA device here; engine {engine.name!r} needs an NVIDIA GPU and a CUDA build of PyTorch"
            )
        trt = import_flavour(FLAVOURS[engine.flavour])
        self._graph = graph
        self._manifest = engine
        self._stack = ExitStack()
        self._errors = self._stack.enter_context(collect_errors())
        self._runtime = trt.Runtime(get_log(trt))  # the engine refers to it
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            major, minor = torch.cuda.get_device_capability()
            raise BundleError(
                f"{path} cannot be loaded: built by {engine.flavour} {engine.version} for {', '.join(engine.targets)}, "
                f"here is {trt.__version__} with a GPU of compute capability {major}.{minor} "
                f"({self._get_last_error()}); build the engine again"
            )
        self._context = self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self._stream = torch.cuda.Stream()
        self._profile: int | None = None

    @property
    def name(self) -> str:
        """Name in reports: ``trt:ENGINE``."""
        return f"trt:{self._manifest.name}"

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the engine once and wait for it; bfloat16 outputs come back as float32, which numpy can hold.

        Raises:
            InputError: An input does not fit the graph's contract, or no profile fits its shape.
            BackendUnavailableError: TensorRT reported that the run failed.
        """
        check_inputs(self._graph, inputs)
        profile = choose_profile(self._manifest, {name: value.shape for name, value in inputs.items()})
        with torch.cuda.stream(self._stream):
            self._select_profile(profile)
            # These names keep the device memory alive until the stream is done with it.
            tensors = {name: torch.tensor(value, device="cuda") for name, value in inputs.items()}
            for name, tensor in tensors.items():
                self._context.set_input_shape(name, tuple(tensor.shape))
                self._context.set_tensor_address(name, tensor.data_ptr())
            outputs = self._allocate_outputs()
            scratch = self._allocate_scratch()
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise BackendUnavailableError(
                    f"engine {self._manifest.name!r} failed to run: {self._get_last_error()}; "
                    "see whether the GPU has memory left, or build the engine again"
                )
            self._stream.synchronize()
            del scratch, tensors
            return {name: _to_host(tensor) for name, tensor in outputs.items()}

    def _select_profile(self, profile: int) -> None:
        if profile != self._profile:
            self._context.set_optimization_profile_async(profile, self._stream.cuda_stream)
            self._profile = profile

    def _allocate_outputs(self) -> dict[str, torch.Tensor]:
        outputs = {}
        for spec in self._manifest.outputs:
            shape = tuple(self._context.get_tensor_shape(spec.name))
            outputs[spec.name] = torch.empty(shape, dtype=getattr(torch, spec.dtype), device="cuda")
            self._context.set_tensor_address(spec.name, outputs[spec.name].data_ptr())
        return outputs

    def _allocate_scratch(self) -> torch.Tensor:
        size_bytes = self._context.update_device_memory_size_for_shapes()
        scratch = torch.empty(max(size_bytes, 1), dtype=torch.uint8, device="cuda")
        self._context.set_device_memory(scratch.data_ptr(), size_bytes)
        return scratch

    def _get_last_error(self) -> str:
        return self._errors[-1] if self._errors else "TensorRT gave no reason"

    def __enter__(self) -> Self:
        """Return the runner."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the context before the engine, and the engine before the runtime."""
        self._context = self._engine = self._runtime = None
        self._stack.close()


def _to_host(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()
