"""Where the graphs of a bundle run: a backend is one file in this folder and one line in the table here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from typing_extensions import TypedDict, Unpack

from flash_export.bundle.default_profile import derive_profile
from flash_export.config import FORWARD
from flash_export.errors import BackendUnavailableError, ConfigError
from flash_export.suggest import describe_unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle
    from flash_export.bundle.manifest import EngineManifest, GraphSpec, ProfileShapes
    from flash_export.interface import TensorSpec
    from flash_export.runtime.ort_providers import EngineNeeds
    from flash_export.runtime.runner import Runner


class OpenOptions(TypedDict, total=False):
    """How a graph is opened.

    Attributes:
        threads: Threads of one operator on the CPU; None: what the runtime chooses.
        fixed_axes: Sizes of symbolic axes, for a session of one shape.
        inner_values: Values of the graph to return as well, where the runtime can be read inside.
        rounds: Whether a half-precision graph on a CPU is to round as a GPU does, where the runtime can be told.
    """

    threads: int | None
    fixed_axes: Mapping[str, int] | None
    inner_values: tuple[str, ...]
    rounds: bool


class OpenTarget(Protocol):
    """Opens a graph; raises BackendUnavailableError where that is not possible here."""

    def __call__(self, **options: Unpack[OpenOptions]) -> Runner:
        """Open it."""
        ...


class OpenGraph(Protocol):
    """Opens an ONNX file, given the contract of its graph."""

    def __call__(self, graph: GraphSpec, path: Path, **options: Unpack[OpenOptions]) -> Runner:
        """Open it."""
        ...


@dataclass(frozen=True)
class Target:
    """A graph of a bundle where it can be run, not open yet.

    Attributes:
        name: Name in reports: ``ort-cpu``, ``trt:ENGINE``.
        open: Open it.
        inputs: What it takes.
        outputs: What it returns.
        profiles: Ranges that it was built for; empty: the whole range of the graph.
        path: The ONNX file that is read; None: something was built from it.
        engine: The engine that was.
    """

    name: str
    open: OpenTarget
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[dict[str, ProfileShapes], ...] = ()
    path: Path | None = None
    engine: EngineManifest | None = None


@dataclass(frozen=True)
class Backend:
    """A runtime.

    Attributes:
        name: What users call it; of a backend that finds several targets, all of them.
        device: Where it runs, and so where the eager model is timed: ``cpu`` or ``cuda``.
        find: Return what there is in a bundle to be run, given the name of a graph that it has.
        is_default: Whether a graph of a bundle is validated on it without being asked for.
        shows_inside: Whether inner values of a graph can be read.
        is_timed: Whether its latency says anything.
        describe_arithmetic: Say in what it computes a graph of a precision, where that is not what the graph says; None
            where it is.
    """

    name: str
    device: str
    find: Callable[[Bundle, str], tuple[Target, ...]]
    is_default: Callable[[Bundle, str], bool]
    shows_inside: bool = True
    is_timed: bool = True
    describe_arithmetic: Callable[[str], str | None] = lambda _: None


def find_target(bundle: Bundle, name: str, graph: str) -> Target:
    """Return what runs a graph on a backend.

    Args:
        bundle: The bundle.
        name: Name of a backend, or of a target, such as ``trt:ENGINE``.
        graph: Name of a graph that it has.

    Raises:
        ConfigError: There is no such backend, or its name means several engines.
        BackendUnavailableError: The bundle has no such engine.
    """
    backend = get_backend(name)
    targets = [target for target in backend.find(bundle, graph) if name in (target.name, backend.name)]
    if not targets:
        raise BackendUnavailableError(describe_missing_engine(graph))
    if len(targets) > 1:
        known = ", ".join(target.name for target in targets)
        raise ConfigError(f"backend {name!r} means {len(targets)} engines of this bundle; name one of {known}")
    return targets[0]


def get_backend(name: str) -> Backend:
    """Return the backend that a backend's or a target's name belongs to.

    Raises:
        ConfigError: There is none.
    """
    group, _, engine = name.partition(":")
    if group not in BACKENDS or (engine and group != TRT):
        raise ConfigError(describe_unknown("backend", name, BACKENDS))
    return BACKENDS[group]


def describe_missing_engine(graph: str) -> str:
    """Say that an engine has to be built first."""
    option = "" if graph == "forward" else f" --graph {graph}"
    return f"the bundle has no engine of the {graph} graph; build one with 'flash-export trt BUNDLE{option}'"


def _reads_graphs(
    name: str,
    device: str,
    open_graph: OpenGraph,
    *,
    is_default: Callable[[Bundle, str], bool],
    shows_inside: bool = True,
    describe_arithmetic: Callable[[str], str | None] = lambda _: None,
) -> Backend:
    """Describe a runtime that reads the ONNX files as they are, so that every graph is one target."""

    def find(bundle: Bundle, graph: str) -> tuple[Target, ...]:
        spec, path = bundle.get_graph(graph), bundle.get_graph_path(graph)
        return (Target(name, partial(open_graph, spec, path), spec.inputs, spec.outputs, path=path),)

    return Backend(name, device, find, is_default, shows_inside, describe_arithmetic=describe_arithmetic)


def _open_ort(
    graph: GraphSpec,
    path: Path,
    *,
    provider: str,
    needs: EngineNeeds | None = None,
    **options: Unpack[OpenOptions],
) -> Runner:
    from flash_export.runtime.ort import OrtRunner

    return OrtRunner(graph, path, provider=provider, needs=needs, **options)


def _builds_engines(name: str, provider: str) -> Backend:
    """Describe a provider of onnxruntime that builds engines: for the profiles of the bundle's last engine of a graph.

    Where there is no engine, the profile is the one that it would get by default. Engines take long to build, so that
    it has to be asked for.
    """

    def find(bundle: Bundle, graph: str) -> tuple[Target, ...]:
        from flash_export.runtime.ort_providers import EngineNeeds

        spec, path = bundle.get_graph(graph), bundle.get_graph_path(graph)
        built = [engine.profiles for engine in bundle.list_engines() if engine.graph == graph]
        profiles = built[-1] if built else (derive_profile(spec, bundle.manifest.interface.chunk_size),)
        sha256 = {file: one for file, one in bundle.manifest.files.items() if file.startswith(spec.file)}
        opener = partial(_open_ort, spec, path, provider=provider, needs=EngineNeeds(spec, profiles, sha256))
        return (Target(name, opener, spec.inputs, spec.outputs, profiles, path=path),)

    return Backend(name, "cuda", find, is_default=_never, shows_inside=False)


def _open_openvino(graph: GraphSpec, path: Path, **options: Unpack[OpenOptions]) -> Runner:
    from flash_export.runtime.openvino import OpenVinoRunner

    assert not options.get("inner_values")  # see shows_inside
    return OpenVinoRunner(graph, path, threads=options.get("threads"), fixed_axes=options.get("fixed_axes"))


def _describe_openvino_arithmetic(precision: str) -> str | None:
    from flash_export.runtime.openvino import describe_openvino_arithmetic

    return describe_openvino_arithmetic(precision)


def _describe_rounding(precision: str) -> str | None:
    from flash_export.runtime.half_on_cpu import describe_rounding

    return describe_rounding(precision)


def _always(bundle: Bundle, graph: str) -> bool:
    return True


def _never(bundle: Bundle, graph: str) -> bool:
    return False


def _has_engine(bundle: Bundle, graph: str) -> bool:
    return any(engine.graph == graph for engine in bundle.list_engines())


def _has_forward_engine(bundle: Bundle, graph: str) -> bool:
    """Whether there is an engine of the forward graph; a text token by token takes minutes, and is to be asked for."""
    return graph == FORWARD and _has_engine(bundle, graph)


def _find_network(bundle: Bundle, graph: str) -> tuple[Target, ...]:
    spec = bundle.get_graph(graph)
    opener = partial(_open_network, spec, bundle.get_graph_path(graph))
    return (Target(TRT_NETWORK, opener, spec.inputs, spec.outputs),)


def _open_network(graph: GraphSpec, path: Path, **options: Unpack[OpenOptions]) -> Runner:
    """Open what TensorRT's parser makes of a graph; half precision is rounded in any case."""
    from flash_export.runtime.trt_network import NetworkRunner

    assert not options.get("fixed_axes")
    return NetworkRunner(graph, path, threads=options.get("threads"), inner_values=options.get("inner_values", ()))


def _find_engines(bundle: Bundle, graph: str) -> tuple[Target, ...]:
    engines = (engine for engine in bundle.list_engines() if engine.graph == graph)
    return tuple(
        Target(
            f"{TRT}:{one.name}",
            partial(_open_engine, bundle, one),
            one.inputs,
            one.outputs,
            one.profiles,
            engine=one,
        )
        for one in engines
    )


def _open_engine(bundle: Bundle, engine: EngineManifest, **options: Unpack[OpenOptions]) -> Runner:
    """Open an engine; it is what it was built to be, and nothing of it runs on the CPU."""
    from flash_export.runtime.trt import open_engine

    assert not options.get("fixed_axes")
    assert not options.get("inner_values")
    return open_engine(bundle, engine)


ORT_CPU, TRT, TRT_NETWORK = "ort-cpu", "trt", "trt-network"
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        _reads_graphs(
            ORT_CPU,
            "cpu",
            partial(_open_ort, provider="cpu"),
            is_default=_always,
            describe_arithmetic=_describe_rounding,
        ),
        _reads_graphs("ort-cuda", "cuda", partial(_open_ort, provider="cuda"), is_default=_always),
        _builds_engines("ort-tensorrt", "tensorrt"),
        _builds_engines("ort-tensorrt-rtx", "tensorrt-rtx"),
        _reads_graphs(
            "openvino",
            "cpu",
            _open_openvino,
            is_default=_never,
            shows_inside=False,
            describe_arithmetic=_describe_openvino_arithmetic,
        ),
        Backend(TRT_NETWORK, "cpu", _find_network, is_default=_has_forward_engine, is_timed=False),
        Backend(TRT, "cuda", _find_engines, is_default=_has_engine, shows_inside=False),
    )
}
