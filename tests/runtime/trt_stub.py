"""A stand-in for TensorRT on a machine without a GPU: engines that compute with numpy on the addresses they are given.

Its classes have the methods that our code calls, each under the name and with the parameters of the real one, which
test_trt_signatures.py compares. What the real ones demand is checked: shapes in the profile that is selected, an
address for every tensor, scratch memory of the size that was asked for, calls in an order that works.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import hashlib
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from flash_export.bundle.manifest import EngineManifest
from flash_export.exporters.profile import derive_profiles

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from flash_export.bundle.bundle import Bundle

    Compute = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


class TensorLocation(enum.Enum):
    DEVICE, HOST = 0, 1


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = 0, 1, 2


class CudaGraphStrategy(enum.Enum):
    DISABLED, WHOLE_GRAPH_CAPTURE = 0, 1


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY, EAGER, NONE = 0, 1, 2


class EngineValidity(enum.Enum):
    VALID, SUBOPTIMAL, INVALID = 0, 1, 2


class EngineInvalidityDiagnostics(enum.IntEnum):
    VERSION_MISMATCH, UNSUPPORTED_CC = 1, 2


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = 0, 1, 2, 3, 4


class Logger(ILogger):
    WARNING = ILogger.Severity.WARNING

    def __init__(self, min_severity: ILogger.Severity = ILogger.Severity.WARNING) -> None:
        self.messages: list[str] = []

    def log(self, severity: ILogger.Severity, message: str) -> None:
        self.messages.append(message)


class IRuntimeCache:
    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, blob: bytes) -> bool:
        self.content = blob
        return True

    def serialize(self) -> bytes:
        return self.content


class IRuntimeConfig:
    def __init__(self) -> None:
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self.allocation, self.cache = ExecutionContextAllocationStrategy.STATIC, IRuntimeCache()

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.allocation = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self.cache = cache
        return True


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig) -> None:
        self.engine, self.config = engine, config
        self.profile: int | None = None if len(engine.plan.profiles) > 1 else 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch: tuple[int, int] | None = None
        self.num_told = 0  # calls that prepare a run
        engine.contexts.append(self)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.num_told += 1
        self.profile, self.shapes = profile_index, {}
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.num_told += 1
        assert self.profile is not None, "no profile was selected"
        bounds = self.engine.plan.profiles[self.profile][name]
        assert all(low <= size <= high for low, size, high in zip(bounds.min, shape, bounds.max, strict=True))
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.num_told += 1
        self.addresses[name] = memory
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes = {
            axis: size
            for spec in self.engine.plan.inputs
            for axis, size in zip(spec.shape, self.shapes[spec.name], strict=True)
            if isinstance(axis, str)
        }
        (spec,) = (one for one in self.engine.plan.outputs if one.name == name)
        return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape)

    def update_device_memory_size_for_shapes(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    def set_device_memory(self, memory: int, size: int) -> None:
        self.scratch = (memory, size)

    def execute_async_v3(self, stream_handle: int) -> bool:
        plan = self.engine.plan
        if plan.fails:
            plan.say(ILogger.Severity.ERROR, "out of memory")
            return False
        needed = self.update_device_memory_size_for_shapes()
        if self.config.allocation is ExecutionContextAllocationStrategy.USER_MANAGED:
            assert self.scratch is not None
            assert self.scratch[1] >= needed
        inputs = {spec.name: self._read(spec, self.shapes[spec.name]) for spec in plan.inputs}
        shapes = {spec.name: self.get_tensor_shape(spec.name) for spec in plan.outputs}
        addresses = dict(self.addresses)

        def run() -> None:
            arrays = {name: one.copy() for name, one in inputs.items()}
            for name, value in plan.compute(arrays).items():
                (spec,) = (one for one in plan.outputs if one.name == name)
                target = read_memory(addresses[name], shapes[name], spec.dtype)
                assert target.shape == value.shape
                target[...] = value

        HostStream.enqueue(stream_handle, run)
        return True

    def _read(self, spec: Any, shape: tuple[int, ...]) -> np.ndarray:
        return read_memory(self.addresses[spec.name], shape, spec.dtype)


def read_memory(address: int, shape: Sequence[int], dtype: str) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = memoryview((ctypes.c_char * size).from_address(address)).cast("B")
    return np.frombuffer(memory, dtype).reshape(tuple(shape))


class ICudaEngine:
    def __init__(self, plan: Plan) -> None:
        self.plan, self.contexts = plan, []

    contexts: list[IExecutionContext]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name in self.plan.on_host else TensorLocation.DEVICE

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, strategy: Any = ExecutionContextAllocationStrategy.STATIC) -> IExecutionContext:
        if isinstance(strategy, IRuntimeConfig):  # the other overload's
            return IExecutionContext(self, strategy)
        config = IRuntimeConfig()
        config.set_execution_context_allocation_strategy(strategy)
        return IExecutionContext(self, config)


class Plan:
    """What an engine is: its manifest, and what it computes."""

    def __init__(self, manifest: Any, compute: Compute, *, on_host: Sequence[str] = (), kernels: bool = False) -> None:
        self.inputs, self.outputs, self.profiles = manifest.inputs, manifest.outputs, manifest.profiles
        self.compute, self.on_host, self.kernels, self.fails = compute, on_host, kernels, False
        self.engines: list[ICudaEngine] = []
        self.log: Any = None
        self.validity = (EngineValidity.VALID, 0)

    def say(self, severity: Any, message: str) -> None:
        self.log.log(severity, message)

    def make_module(self) -> Any:
        """Make the module of a flavour whose engines are this one."""
        plan = self

        class Runtime:
            def __init__(self, logger: Any) -> None:
                plan.log = logger

            def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
                if not serialized_engine.startswith(b"plan"):
                    plan.say(ILogger.Severity.ERROR, "magic tag does not match")
                    return None
                engine = ICudaEngine(plan)
                plan.engines.append(engine)
                return engine

        class RtxRuntime(Runtime):
            def get_engine_validity(self, buffer: bytes) -> tuple[EngineValidity, int]:
                return plan.validity

        names = [TensorLocation, ExecutionContextAllocationStrategy, ILogger, Logger]
        if self.kernels:
            names += [CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy, EngineValidity]
            names += [EngineInvalidityDiagnostics]
        classes = {one.__name__: one for one in names}
        runtime = RtxRuntime if self.kernels else Runtime
        module = ModuleType("stub")
        vars(module).update(classes, Runtime=runtime, __version__="0.0")
        return module


def describe_engine(bundle: Bundle, graph: str, name: str = "") -> EngineManifest:
    """Return the manifest of an engine of a graph, whose file is ``plan``."""
    spec = bundle.get_graph(graph)
    return EngineManifest(
        name=name or graph,
        flavour="tensorrt",
        version="0.0",
        targets=("8.9",),
        graph=graph,
        graph_sha256="",
        engine_sha256=hashlib.sha256(b"plan").hexdigest(),
        profiles=derive_profiles(spec, 8),
        inputs=spec.inputs,
        outputs=spec.outputs,
        num_layers=1,
    )


class HostStream:
    """A stream on the host, where work is done at once, or recorded."""

    _streams: ClassVar[dict[int, HostStream]] = {}

    def __init__(self) -> None:
        self.num_waits = 0
        self.recorded: list[Callable[[], None]] | None = None
        self.cuda_stream = id(self)
        self._streams[self.cuda_stream] = self

    @classmethod
    def enqueue(cls, handle: int, run: Callable[[], None]) -> None:
        stream = cls._streams[handle]
        if stream.recorded is None:
            run()
        else:
            stream.recorded.append(run)

    def synchronize(self) -> None:
        self.num_waits += 1


class HostDevice:
    """What a runner needs of a GPU, on the host."""

    def __init__(self) -> None:
        self.num_created, self.num_captured, self.streams = 0, 0, []  # type: int, int, list[HostStream]

    def create_stream(self) -> HostStream:
        self.streams.append(HostStream())
        return self.streams[-1]

    def use(self, stream: HostStream) -> Any:
        return contextlib.nullcontext(stream)

    def create(self, shape: Sequence[int], dtype: torch.dtype, *, on_host: bool = False) -> Tensor:
        self.num_created += 1
        return torch.full(tuple(shape), 77, dtype=dtype)

    def share(self, tensor: Tensor, stream: Any = None) -> None:
        """Nothing is freed early on the host."""

    def capture(self, stream: HostStream, run: Callable[[], None]) -> Callable[[], None]:
        self.num_captured += 1
        recorded: list[Callable[[], None]] = []
        stream.recorded = recorded
        run()
        stream.recorded = None

        def replay() -> None:
            for work in recorded:
                work()

        return replay
