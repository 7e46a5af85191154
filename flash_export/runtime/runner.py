"""The protocol that every backend implements, and that validators know alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    import numpy as np
    from typing_extensions import Self


class Runner(Protocol):
    """A loaded model: named arrays in, named arrays out. A context manager that frees what it holds."""

    @property
    def name(self) -> str:
        """Name of the backend in reports: ``eager``, ``ort-cpu``, ``ort-cuda``, ``trt:ENGINE``."""
        ...

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once.

        Raises:
            InputError: An input is missing, unknown, or has a wrong dtype, rank or size.
        """
        ...

    def __enter__(self) -> Self:
        """Return the runner."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free sessions, engines and device memory."""
        ...
