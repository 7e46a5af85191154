"""Memory, streams and graphs of the current CUDA device, by PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor


class CudaDevice:
    """What a runner needs of a GPU."""

    def create_stream(self) -> Any:
        """Make a stream."""
        return torch.cuda.Stream()

    def use(self, stream: Any) -> AbstractContextManager[Any]:
        """Let a block allocate and copy on a stream; what was begun before is waited for, and what follows waits."""
        return _Use(stream)

    def create(self, shape: Sequence[int], dtype: torch.dtype, *, on_host: bool = False) -> Tensor:
        """Make a tensor on the device, or in pinned memory of the host."""
        if on_host:
            return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)
        return torch.empty(tuple(shape), dtype=dtype, device="cuda")

    def share(self, tensor: Tensor, stream: Any = None) -> None:
        """Keep the memory of a tensor from being used again before a stream, or the current one, is done with it."""
        if tensor.is_cuda:
            tensor.record_stream(stream or torch.cuda.current_stream())

    def capture(self, stream: Any, run: Callable[[], None]) -> Callable[[], None]:
        """Record what a function puts on a stream, without doing it; return what does it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            run()
        return graph.replay


class _Use:
    def __init__(self, stream: Any) -> None:
        self._stream, self._inside = stream, torch.cuda.stream(stream)

    def __enter__(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream())
        self._inside.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._inside.__exit__(*error)
        torch.cuda.current_stream().wait_stream(self._stream)
