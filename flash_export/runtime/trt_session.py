"""An engine in device memory, and sessions that run it: each has an execution context, a stream and buffers of its own.

Sessions of one engine may be used by several threads, a thread each. What is bound to a session keeps its addresses, so
that it can be run again without a word to TensorRT but one, or by a CUDA graph without any.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from flash_export.errors import BackendUnavailableError, BundleError, ConfigError
from flash_export.runtime.kernel_cache import KernelCache
from flash_export.runtime.profile_choice import choose_profile
from flash_export.runtime.trt_api import get_flavour, import_flavour
from flash_export.runtime.trt_features import KERNELS, Features
from flash_export.runtime.trt_log import collect_errors, get_log
from flash_export.suggest import list_known

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from torch import Tensor
    from typing_extensions import Self

    from flash_export.bundle.manifest import EngineManifest
    from flash_export.interface import TensorSpec
    from flash_export.runtime.cuda_device import CudaDevice

MAX_BOUND = 16  # shapes whose buffers and CUDA graphs are kept


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is run.

    Attributes:
        cuda_graphs: Whether a shape that comes again is run by a CUDA graph: less work for the CPU, some more memory.
        kernels: When TensorRT-RTX makes kernels for a new shape: ``lazy``, beside runs with what it has; ``eager``,
            before the first run; ``none``, never.
        keep_kernels: Whether these are kept in the user's cache folder for the next process.
    """

    cuda_graphs: bool = False
    kernels: Literal["lazy", "eager", "none"] = "lazy"
    keep_kernels: bool = True

    def __post_init__(self) -> None:
        """Check that the strategy is one."""
        if self.kernels not in KERNELS:
            raise ConfigError(f"kernels={self.kernels!r} is unknown; use one of {list_known(self.kernels, KERNELS)}")


class LoadedEngine:
    """An engine that was loaded; a context manager that frees it, its sessions first."""

    def __init__(
        self, manifest: EngineManifest, path: Path, device: CudaDevice, options: EngineOptions | None = None
    ) -> None:
        """Load an engine whose file was found to be what its manifest says.

        Raises:
            BackendUnavailableError: The engine's flavour is not installed.
            BundleError: TensorRT cannot load the file.
        """
        self.manifest, self.device, self.options = manifest, device, options or EngineOptions()
        self.trt = import_flavour(get_flavour(manifest))
        self.features = Features(self.trt)
        self.kernels = KernelCache(manifest) if self.features.makes_kernels and self.options.keep_kernels else None
        self._sessions: list[Session] = []
        self._stack = ExitStack()
        self.errors = self._stack.enter_context(collect_errors())
        self._runtime = self.trt.Runtime(get_log(self.trt))  # the engine refers to it
        content = path.read_bytes()
        refusal = self.features.describe_refusal(self._runtime, content)
        self.engine: Any = None if refusal else self._runtime.deserialize_cuda_engine(content)
        if self.engine is None:
            self._stack.close()
            raise BundleError(
                f"{path} cannot be loaded: built by {manifest.flavour} {manifest.version} for "
                f"{', '.join(manifest.targets)}, here is {self.trt.__version__} ({refusal or self.get_last_error()}); "
                "build the engine again"
            )
        host = self.trt.TensorLocation.HOST
        specs = (*manifest.inputs, *manifest.outputs)
        # Sizes that are inputs have to lie where TensorRT reads them.
        self.on_host = {spec.name for spec in specs if self.engine.get_tensor_location(spec.name) == host}

    def open_session(self) -> Session:
        """Make a session, to be used by one thread at a time."""
        session = Session(self)
        self._sessions.append(session)
        return session

    def get_last_error(self) -> str:
        """Return what TensorRT said last."""
        return self.errors[-1] if self.errors else "TensorRT gave no reason"

    def __enter__(self) -> Self:
        """Return the engine."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free contexts before the engine, and the engine before the runtime."""
        for session in self._sessions:
            session.close()
        self._sessions.clear()
        self.engine = self._runtime = None
        self._stack.close()


class Session:
    """One execution context of an engine with its stream and its memory."""

    def __init__(self, engine: LoadedEngine) -> None:
        """Make the context; :meth:`LoadedEngine.open_session` does."""
        self._engine, self._device = engine, engine.device
        made = engine.features.create_context(
            engine.engine,
            cuda_graphs=engine.options.cuda_graphs,
            kernels=engine.options.kernels,
            kept=engine.kernels.read() if engine.kernels else None,
        )
        self._context, self._kernels = made.context, made.kernels
        if self._context is None:
            raise BackendUnavailableError(
                f"no context of engine {engine.manifest.name!r} could be made: {engine.get_last_error()}; see whether "
                "the GPU has memory left"
            )
        self._captures = engine.options.cuda_graphs and not engine.features.makes_kernels
        self.stream = self._device.create_stream()
        self._profile: int | None = None
        self._bound: OrderedDict[tuple[tuple[int, ...], ...], Binding] = OrderedDict()

    def bind(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor] | None = None) -> Binding:
        """Bind tensors that stay where they are, to be run any number of times.

        Args:
            inputs: Every input, on the device, or in pinned memory of the host where :attr:`LoadedEngine.on_host` says.
            outputs: Where the outputs go; what is missing is allocated.

        Raises:
            InputError: No profile fits the shapes.
        """
        profile = choose_profile(self._engine.manifest, {name: tuple(one.shape) for name, one in inputs.items()})
        with self._device.use(self.stream):
            self._prepare(inputs, profile)
            made = {
                spec.name: self._create(spec, self._context.get_tensor_shape(spec.name))
                for spec in self._engine.manifest.outputs
                if outputs is None or spec.name not in outputs
            }
            scratch_bytes = self._context.update_device_memory_size_for_shapes()
            scratch = self._device.create((max(scratch_bytes, 1),), torch.uint8)
        return Binding(self, dict(inputs), {**made, **(outputs or {})}, scratch, scratch_bytes, profile, self._captures)

    def get_binding(self, shapes: Mapping[str, tuple[int, ...]]) -> Binding:
        """Return buffers of the session's own for inputs of these shapes: those of before, if they are still kept.

        Raises:
            InputError: No profile fits the shapes.
        """
        key = tuple(shapes[spec.name] for spec in self._engine.manifest.inputs)
        if key not in self._bound:
            with self._device.use(self.stream):
                inputs = {spec.name: self._create(spec, shapes[spec.name]) for spec in self._engine.manifest.inputs}
            self._bound[key] = self.bind(inputs)
            if len(self._bound) > MAX_BOUND:
                self._bound.popitem(last=False)
        self._bound.move_to_end(key)
        return self._bound[key]

    def run(self, binding: Binding) -> None:
        """Put one run on the stream.

        Raises:
            BackendUnavailableError: TensorRT reported that it failed.
        """
        self._prepare(binding.inputs, binding.profile)
        for name, tensor in binding.outputs.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        self._context.set_device_memory(binding.scratch.data_ptr(), binding.scratch_bytes)
        if not self._context.execute_async_v3(self.stream.cuda_stream):
            raise BackendUnavailableError(
                f"engine {self._engine.manifest.name!r} failed to run: {self._engine.get_last_error()}; see whether "
                "the GPU has memory left, or build the engine again"
            )

    def use(self) -> Any:
        """Let a block copy to and from bound tensors in the order of the runs."""
        return self._device.use(self.stream)

    def share(self, binding: Binding) -> None:
        """Let tensors that are freed while the GPU still uses them live on until it does not."""
        for tensor in binding.inputs.values():
            self._device.share(tensor, self.stream)
        for tensor in binding.outputs.values():
            self._device.share(tensor)

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Record what a function puts on the stream as a CUDA graph."""
        return self._device.capture(self.stream, run)

    def close(self) -> None:
        """Wait for what is under way, keep the kernels that were made, and free everything."""
        if self._context is None:
            return
        self.stream.synchronize()
        if self._kernels is not None and self._engine.kernels is not None:
            self._engine.kernels.write(bytes(self._kernels.serialize()))
        self._bound.clear()
        self._context = self._kernels = None

    def _prepare(self, inputs: Mapping[str, Tensor], profile: int) -> None:
        if profile != self._profile:
            self._context.set_optimization_profile_async(profile, self.stream.cuda_stream)
            self._profile = profile
        for name, tensor in inputs.items():
            self._context.set_input_shape(name, tuple(tensor.shape))
            self._context.set_tensor_address(name, tensor.data_ptr())

    def _create(self, spec: TensorSpec, shape: Any) -> Tensor:
        dtype = getattr(torch, spec.dtype)
        return self._device.create(tuple(shape), dtype, on_host=spec.name in self._engine.on_host)


class Binding:
    """Inputs and outputs of a session that stay where they are."""

    def __init__(
        self,
        session: Session,
        inputs: dict[str, Tensor],
        outputs: dict[str, Tensor],
        scratch: Tensor,
        scratch_bytes: int,
        profile: int,
        captures: bool,
    ) -> None:
        """Keep the tensors; :meth:`Session.bind` makes bindings."""
        self.inputs, self.outputs, self.scratch, self.scratch_bytes = inputs, outputs, scratch, scratch_bytes
        self.profile = profile
        self._session, self._captures = session, captures
        self._replay: Callable[[], None] | None = None

    def run(self) -> None:
        """Compute the outputs from what the inputs hold, on the session's stream.

        The first run says everything to TensorRT, which may still allocate; with CUDA graphs the second one is recorded
        after it, and all others replay that. The scratch memory is the binding's own, so that the graph stays valid
        whatever else the context runs.

        Raises:
            BackendUnavailableError: TensorRT reported that it failed.
        """
        if self._replay is not None:
            self._replay()
            return
        self._session.run(self)
        if self._captures:
            self._replay = self._session.capture(lambda: self._session.run(self))
