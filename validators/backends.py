"""The backends that a bundle can be validated on: onnxruntime's providers and the engines built from the bundle."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from flash_export.config import PREFILL
from flash_export.errors import BackendUnavailableError, ConfigError
from flash_export.generation.state_graphs import list_state_graphs
from flash_export.interface import BATCH, SEQ, TensorSpec
from flash_export.runtime.backends import BACKENDS, describe_missing_engine
from flash_export.suggest import describe_unknown
from flash_export.temporary import create_temporary_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle
    from flash_export.bundle.manifest import ProfileShapes
    from flash_export.generation.state import State
    from flash_export.runtime.backends import Backend as Runtime
    from flash_export.runtime.backends import Target
    from flash_export.runtime.runner import Runner
    from flash_export.validators.lengths import Cell

GRAPH = "forward"
STREAM_PREFIX = "stream:"
ONNX_PREFIX = "onnx:"


@dataclass(frozen=True)
class Backend:
    """Something to validate that is not open yet.

    Attributes:
        name: Name in reports.
        graph: Graph of the bundle that it runs.
        device: Where it runs, and so where the eager model is timed: ``cpu`` or ``cuda``.
        inputs: What it takes.
        outputs: What it returns, in the order of the interface.
        open: Make the runner; raises BackendUnavailableError where it cannot be used.
        profiles: Ranges that an engine was built for; empty: the whole range of the graph.
        is_timed: Whether its latency is that of one pass, and so comparable with the eager model's.
        open_static: Make a runner for one fixed shape, given the sizes of ``batch`` and ``seq``; None: it cannot be.
        reload_state: Save a state and load it again; None: it carries none.
        onnx_path: The ONNX file that it runs; None: it runs several, or something else.
        describe_arithmetic: Say in what it computes, where that is not what the graph says; None where it is.
    """

    name: str
    graph: str
    device: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    open: Callable[[], Runner]
    profiles: tuple[dict[str, ProfileShapes], ...] = ()
    is_timed: bool = True
    open_static: Callable[[Mapping[str, int]], Runner] | None = None
    reload_state: Callable[[State], State] | None = None
    onnx_path: Path | None = None
    describe_arithmetic: Callable[[], str | None] = lambda: None

    def describe_misfit(self, cell: Cell) -> str | None:
        """Say why the engine was not built for a shape, or None when it was."""
        sizes = {BATCH: cell.batch, SEQ: cell.seq_len}
        shapes = {spec.name: tuple(_fill(size, sizes) for size in spec.shape) for spec in self.inputs}
        if not self.profiles or any(_fits(profile, shapes) for profile in self.profiles):
            return None
        first = self.inputs[0].name
        built = ", ".join(f"{_format(one[first].min)} to {_format(one[first].max)}" for one in self.profiles)
        return (
            f"{first} of {_format(shapes[first])} is outside of the engine's profiles ({built}); build one for it with "
            "'flash-export trt'"
        )


def list_backends(
    bundle: Bundle, requested: Sequence[str] = (), *, onnx_files: Sequence[Path] = (), threads: int | None = None
) -> list[Backend]:
    """Return the backends that were asked for; all that the bundle could run on when nothing was named.

    Args:
        bundle: The bundle.
        requested: ``ort-cpu``, ``ort-cuda``, ``ort-tensorrt``, ``ort-tensorrt-rtx``, ``openvino``, ``trt-network``,
            ``trt`` (every engine of the forward graph) or ``trt:NAME``; for causal models ``stream:ort-cpu`` and so on:
            the graphs that carry a state, the text in pieces.
        onnx_files: Graphs of other exporters that should compute the same; each becomes ``onnx:NAME``.
        threads: Threads of one operator on the CPU; None: what the backend chooses.

    Raises:
        ConfigError: A name is none of these.
        BundleError: An engine's manifest, or a foreign graph, cannot be read.
    """
    groups, streams, defaults = {}, {}, []
    for name, runtime in BACKENDS.items():
        found = [_describe_target(bundle, runtime, target, threads) for target in runtime.find(bundle, GRAPH)]
        groups[name] = found or [_describe_missing(bundle, runtime)]
        groups |= {one.name: [one] for one in found}
        if _has_stream(bundle, runtime):
            streams[f"{STREAM_PREFIX}{name}"] = [_describe_stream(bundle, runtime, threads)]
        if runtime.is_default(bundle, GRAPH):
            defaults.append(name)
    defaults += [name for name in streams if _is_default_stream(bundle, name.removeprefix(STREAM_PREFIX))]
    groups |= streams
    chosen: dict[str, Backend] = {}
    for name in requested or ([] if onnx_files else defaults):
        if name not in groups:
            raise ConfigError(describe_unknown("backend", name, groups))
        chosen |= {one.name: one for one in groups[name]}
    return [*chosen.values(), *(_describe_foreign(bundle, path, threads) for path in onnx_files)]


def _describe_target(bundle: Bundle, runtime: Runtime, target: Target, threads: int | None) -> Backend:
    opener = partial(target.open, threads=threads)
    return Backend(
        target.name,
        GRAPH,
        runtime.device,
        target.inputs,
        target.outputs,
        opener,
        target.profiles,
        is_timed=runtime.is_timed,
        open_static=None if target.path is None else partial(_open_fixed, opener),
        onnx_path=target.path,
        describe_arithmetic=partial(runtime.describe_arithmetic, bundle.get_graph(GRAPH).arithmetic),
    )


def _describe_missing(bundle: Bundle, runtime: Runtime) -> Backend:
    graph = bundle.get_graph(GRAPH)
    return Backend(runtime.name, GRAPH, runtime.device, graph.inputs, graph.outputs, _refuse_missing_engine)


def _describe_foreign(bundle: Bundle, path: Path, threads: int | None) -> Backend:
    from flash_export.validators.foreign import ForeignRunner, read_foreign_graph

    ours = bundle.get_graph(GRAPH)
    graph = read_foreign_graph(path, bundle.manifest.interface, ours)
    opener = partial(ForeignRunner, path, graph, threads=threads)
    return Backend(f"{ONNX_PREFIX}{path.stem}", GRAPH, "cpu", graph.inputs, graph.outputs, opener, onnx_path=path)


def _open_fixed(opener: Callable[..., Runner], sizes: Mapping[str, int]) -> Runner:
    return opener(fixed_axes=sizes)


def _has_stream(bundle: Bundle, runtime: Runtime) -> bool:
    """Whether there is something to run all graphs with that carry a state."""
    graphs = list_state_graphs(bundle)
    return set(graphs) <= bundle.manifest.graphs.keys() and all(runtime.find(bundle, graph) for graph in graphs)


def _is_default_stream(bundle: Bundle, name: str) -> bool:
    return all(BACKENDS[name].is_default(bundle, graph) for graph in list_state_graphs(bundle))


def _describe_stream(bundle: Bundle, runtime: Runtime, threads: int | None) -> Backend:
    return Backend(
        f"{STREAM_PREFIX}{runtime.name}",
        "+".join(list_state_graphs(bundle)),
        runtime.device,
        bundle.get_graph(PREFILL).inputs[:1],
        bundle.get_graph(GRAPH).outputs,
        partial(_open_stream, bundle, runtime.name, threads),
        is_timed=False,
        reload_state=partial(_reload_state, bundle),
        describe_arithmetic=partial(runtime.describe_arithmetic, bundle.get_graph(GRAPH).arithmetic),
    )


def _open_stream(bundle: Bundle, runtime: str, threads: int | None) -> Runner:
    from flash_export.generation.backends import open_runners
    from flash_export.generation.streaming import StreamingRunner

    return StreamingRunner(open_runners(bundle, runtime, threads=threads), partial(_reload_state, bundle))


def _reload_state(bundle: Bundle, state: State) -> State:
    from flash_export.generation.state import State

    with create_temporary_folder() as folder:
        path = folder / "state.safetensors"
        state.save(path)
        return State.load(path, bundle)


def _refuse_missing_engine() -> Runner:
    raise BackendUnavailableError(describe_missing_engine(GRAPH))


def _fill(size: int | str, sizes: Mapping[str, int]) -> int:
    return sizes[size] if isinstance(size, str) else size


def _fits(profile: Mapping[str, ProfileShapes], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return all(_contains(profile[name], shape) for name, shape in shapes.items())


def _contains(shapes: ProfileShapes, shape: tuple[int, ...]) -> bool:
    bounds = zip(shapes.min, shape, shapes.max, strict=True)
    return all(low <= size <= high for low, size, high in bounds)


def _format(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
