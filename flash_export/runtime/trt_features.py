"""What one TensorRT has that another lacks, behind one object; all other code is the same for all of them.

TensorRT-RTX builds for named compute capabilities without a GPU, makes kernels at run time and keeps them, and captures
CUDA graphs by itself. TensorRT builds for the GPU at hand, and its CUDA graphs are captured around it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

KERNELS = ("lazy", "eager", "none")


@dataclass(frozen=True)
class Context:
    """An execution context.

    Attributes:
        context: The ``IExecutionContext``; its scratch memory is given to it.
        kernels: The ``IRuntimeCache`` with the kernels that were made at run time; None: there are none.
    """

    context: Any
    kernels: Any = None


class Features:
    """What a TensorRT can do, read off its module."""

    def __init__(self, trt: Any) -> None:
        """Take the module."""
        self._trt = trt

    @property
    def makes_kernels(self) -> bool:
        """Whether kernels are made at run time, and CUDA graphs captured inside."""
        return hasattr(self._trt, "DynamicShapesKernelSpecializationStrategy")

    def list_capabilities(self) -> dict[str, Any]:
        """Return what can be built for without a GPU: enum members by compute capability, such as ``8.9``."""
        found = {}
        for name, member in getattr(getattr(self._trt, "ComputeCapability", None), "__members__", {}).items():
            if match := re.fullmatch(r"SM(\d+)(\d)", name):
                found[f"{match[1]}.{match[2]}"] = member
        return found

    def set_targets(self, config: Any, targets: Iterable[Any]) -> None:
        """Tell a builder's config what to build for; no target: for the GPU at hand."""
        members = list(targets)
        if members:
            config.num_compute_capabilities = len(members)
            for index, member in enumerate(members):
                config.set_compute_capability(member, index)

    def describe_refusal(self, runtime: Any, content: bytes) -> str | None:
        """Return why an engine cannot be loaded here, as far as that is told before; None: nothing speaks against it.

        TensorRT-RTX reads the head of the engine and the properties of the GPU for it.
        """
        if not hasattr(runtime, "get_engine_validity"):
            return None
        validity, found = runtime.get_engine_validity(content)
        if validity != self._trt.EngineValidity.INVALID:
            return None
        members = self._trt.EngineInvalidityDiagnostics.__members__
        names = [name for name, member in members.items() if int(member) & int(found)]
        return f"it is not valid here ({', '.join(names).lower() or 'for no reason that is told'})"

    def create_context(self, engine: Any, *, cuda_graphs: bool, kernels: str, kept: bytes | None) -> Context:
        """Make a context.

        Args:
            engine: The ``ICudaEngine``.
            cuda_graphs: Whether TensorRT-RTX is to capture CUDA graphs.
            kernels: When TensorRT-RTX makes kernels for a new shape: ``lazy``, beside the runs; ``eager``, before the
                first; ``none``, never.
            kept: Kernels that an earlier context made; TensorRT-RTX checks whether they fit.
        """
        trt = self._trt
        if not self.makes_kernels:
            return Context(engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED))
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        graphs = trt.CudaGraphStrategy
        config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE if cuda_graphs else graphs.DISABLED
        strategy = getattr(trt.DynamicShapesKernelSpecializationStrategy, kernels.upper())
        config.dynamic_shapes_kernel_specialization_strategy = strategy
        cache = config.create_runtime_cache()
        if kept is not None:
            cache.deserialize(kept)
        config.set_runtime_cache(cache)
        return Context(engine.create_execution_context(config), cache)
