"""Reporting what TensorRT made of a graph: from its parser on any machine, from the engine itself where it can run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.bundle.bundle import reads_bundles
from flash_export.bundle.default_profile import get_input_axes
from flash_export.config import FORWARD, TENSORRT, TENSORRT_RTX
from flash_export.errors import BackendUnavailableError, BundleError, ConfigError
from flash_export.exporters.analysis import count_constant_bytes
from flash_export.exporters.engine_facts import read_tensors
from flash_export.exporters.engine_report.layers import describe_layers
from flash_export.exporters.engine_report.network import read_network
from flash_export.exporters.engine_report.results import POINT_NAMES, EngineReport, Point
from flash_export.exporters.profile import derive_profiles
from flash_export.graph_files import read_graph
from flash_export.runtime.trt_api import get_flavour, is_installed, parse_network
from flash_export.runtime.trt_inspector import read_engine_layers
from flash_export.runtime.trt_shapes import NetworkShapes
from flash_export.suggest import list_known

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flash_export.bundle.bundle import Bundle
    from flash_export.bundle.manifest import EngineManifest, GraphSpec, ProfileShapes
    from flash_export.runtime.trt_api import ParsedNetwork
    from flash_export.runtime.trt_inspector import EngineLayer
    from flash_export.runtime.trt_shapes import LayerWork

_NO_ENGINE = "this is a graph, from which no engine was built"


@reads_bundles
def report_engine(bundle: Bundle, *, engine: str | None = None, graph: str | None = None) -> EngineReport:
    """Report what TensorRT made of a graph of a bundle.

    The graph is parsed again with the flavour that the engine was built with, which needs no GPU. The layers of the
    engine itself, after fusion, are read where there is a GPU that it runs on.

    Args:
        bundle: The bundle.
        engine: Name of an engine; None: the only one, if no graph is named.
        graph: Name of a graph to report alone, with the profile that an engine would get by default; None: the
            engine's, or ``forward`` where the bundle has none.

    Raises:
        BackendUnavailableError: The flavour is not installed.
        BundleError: The bundle has no such engine or graph, or the engine is not of this bundle.
        ConfigError: Both are named, or the bundle has several engines and none is named.
        EngineBuildError: The parser cannot take the graph.
    """
    chosen = _choose_engine(bundle, engine, graph)
    name = chosen.graph if chosen else graph or FORWARD
    spec, path = bundle.get_graph(name), bundle.get_graph_path(name)
    if chosen:
        flavour, profiles = get_flavour(chosen), chosen.profiles
        engine_layers, not_read = _read_engine(bundle, chosen)
    else:
        flavour = TENSORRT_RTX if is_installed(TENSORRT_RTX) or not is_installed(TENSORRT) else TENSORRT
        profiles = derive_profiles(spec, bundle.manifest.interface.chunk_size)
        engine_layers, not_read = None, _NO_ENGINE
    model = read_graph(path)
    parsed = parse_network(flavour, path)
    inputs, _ = read_tensors(parsed.network, spec)
    network = read_network(parsed)
    points = _list_points(spec, profiles)
    work, not_measured = _measure(parsed, spec, points)
    return EngineReport(
        bundle=bundle.path,
        graph=name,
        engine=chosen,
        parser=f"{flavour.title} {parsed.trt.__version__}",
        nodes={node.name: node.op_type for node in model.graph.node},
        initializer_bytes=count_constant_bytes(model),
        points=points,
        not_measured=not_measured,
        layers=describe_layers(network, [spec.name for spec in inputs], work),
        engine_layers=engine_layers,
        not_read=not_read,
    )


def _choose_engine(bundle: Bundle, name: str | None, graph: str | None) -> EngineManifest | None:
    """Return the engine that is meant; None for a graph alone."""
    if graph is not None:
        if name is not None:
            raise ConfigError(f"engine={name} and graph={graph} are both given; name one of them")
        return None
    engines = {engine.name: engine for engine in bundle.list_engines()}
    if name is not None and name not in engines:
        has = f"it has {list_known(name, engines)}" if engines else "build one with 'flash-export trt'"
        raise BundleError(f"{bundle.path} has no engine {name!r}; {has}")
    if name is None and len(engines) > 1:
        raise ConfigError(
            f"{bundle.path} has {len(engines)} engines; name one of {', '.join(engines)} with --engine, or a graph "
            "with --graph"
        )
    return engines[name] if name is not None else next(iter(engines.values()), None)


def _read_engine(bundle: Bundle, engine: EngineManifest) -> tuple[tuple[EngineLayer, ...] | None, str]:
    """Return the layers of an engine, or why they could not be read.

    Raises:
        BundleError: The engine is not what its manifest says.
    """
    from flash_export.runtime.trt import load_engine

    try:
        with load_engine(bundle, engine) as loaded:
            return read_engine_layers(loaded), ""
    except BackendUnavailableError as error:
        return None, str(error)


def _list_points(graph: GraphSpec, profiles: Sequence[Mapping[str, ProfileShapes]]) -> tuple[Point, ...]:
    return tuple(
        Point(index, name, _read_sizes(graph, {tensor: getattr(shapes, name) for tensor, shapes in profile.items()}))
        for index, profile in enumerate(profiles)
        for name in POINT_NAMES
    )


def _read_sizes(graph: GraphSpec, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Return the sizes of the free axes, in the order in which a profile is written."""
    sizes = {
        axis: size
        for spec in graph.inputs
        for axis, size in zip(spec.shape, shapes[spec.name], strict=True)
        if isinstance(axis, str)
    }
    return {axis: sizes[axis] for axis in get_input_axes(graph)}


def _fill_shapes(graph: GraphSpec, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    return {
        spec.name: tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape) for spec in graph.inputs
    }


def _measure(
    parsed: ParsedNetwork, graph: GraphSpec, points: Sequence[Point]
) -> tuple[list[dict[str, LayerWork]], str]:
    """Return what every layer gives at each point, or why that cannot be told."""
    try:
        network = NetworkShapes(parsed)
        return [network.measure(_fill_shapes(graph, point.sizes)) for point in points], ""
    except BackendUnavailableError as error:
        return [], str(error)
