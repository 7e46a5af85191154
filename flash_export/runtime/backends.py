"""The runtimes that read the ONNX graphs of a bundle: one is one file in this folder and one line here.

Engines are no such runtime: they are built from a graph, and found in the bundle (``trt:NAME``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from flash_export.bundle.manifest import GraphSpec
    from flash_export.runtime.runner import Runner


class OpenGraph(Protocol):
    """Opens a graph; raises BackendUnavailableError where that is not possible here."""

    def __call__(
        self,
        graph: GraphSpec,
        path: Path,
        *,
        threads: int | None = None,
        fixed_axes: Mapping[str, int] | None = None,
        inner_values: tuple[str, ...] = (),
    ) -> Runner:
        """Open the file of a graph.

        Args:
            graph: Contract of the graph.
            path: The ONNX file.
            threads: Threads of one operator on the CPU; None: what the runtime chooses.
            fixed_axes: Sizes of symbolic axes, for a session of one shape.
            inner_values: Values of the graph to return as well, where the runtime can be read inside.
        """
        ...


@dataclass(frozen=True)
class GraphBackend:
    """A runtime.

    Attributes:
        name: What users call it.
        device: Where it runs, and so where the eager model is timed: ``cpu`` or ``cuda``.
        open: Open a graph.
        is_default: Whether it is validated without being asked for.
        shows_inside: Whether inner values of a graph can be read.
    """

    name: str
    device: str
    open: OpenGraph
    is_default: bool = True
    shows_inside: bool = True


def _open_ort(
    graph: GraphSpec,
    path: Path,
    *,
    provider: str,
    threads: int | None = None,
    fixed_axes: Mapping[str, int] | None = None,
    inner_values: tuple[str, ...] = (),
) -> Runner:
    from flash_export.runtime.ort import OrtRunner

    return OrtRunner(graph, path, provider=provider, threads=threads, fixed_axes=fixed_axes, inner_values=inner_values)


def _open_openvino(
    graph: GraphSpec,
    path: Path,
    *,
    threads: int | None = None,
    fixed_axes: Mapping[str, int] | None = None,
    inner_values: tuple[str, ...] = (),
) -> Runner:
    from flash_export.runtime.openvino import OpenVinoRunner

    assert not inner_values  # see shows_inside
    return OpenVinoRunner(graph, path, threads=threads, fixed_axes=fixed_axes)


ORT_CPU = "ort-cpu"
BACKENDS: dict[str, GraphBackend] = {
    backend.name: backend
    for backend in (
        GraphBackend(ORT_CPU, "cpu", partial(_open_ort, provider="cpu")),
        GraphBackend("ort-cuda", "cuda", partial(_open_ort, provider="cuda")),
        GraphBackend("openvino", "cpu", _open_openvino, is_default=False, shows_inside=False),
    )
}
