"""Building a TensorRT engine from a graph of a bundle."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from flash_export.bundle.bundle import reads_bundles
from flash_export.bundle.manifest import EngineManifest
from flash_export.config import DEFAULT_OPSET, BuildOptions
from flash_export.errors import EngineBuildError
from flash_export.exporters.engine_cache import EngineCache
from flash_export.exporters.engine_facts import count_layer_dtypes, read_tensors
from flash_export.exporters.engine_progress import BuildWatch, create_monitor
from flash_export.exporters.flavour import choose_flavour, choose_targets
from flash_export.exporters.profile_use import ProfileUse, choose_profiles
from flash_export.exporters.quantization.schemes.registry import SCHEMES_BY_NAME
from flash_export.runtime.trt_api import import_flavour, parse_network
from flash_export.runtime.trt_features import Features
from flash_export.runtime.trt_log import collect_errors
from flash_export.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flash_export.bundle.bundle import Bundle
    from flash_export.bundle.manifest import GraphSpec, ProfileShapes
    from flash_export.config import Flavour
    from flash_export.progress import ProgressCallback

_TURING_REFUSAL, _WORKSPACE_REFUSAL = "FP32 GEMM is not supported", "within workspace limit"
_OUT_OF_MEMORY, _ATTENTION_REFUSAL = "OutOfMemory", "Attention operation was not supported by a dedicated kernel"


@dataclass(frozen=True)
class EngineBuild:
    """What a build made.

    Attributes:
        engine: The stored manifest of the engine.
        is_from_cache: Whether it had been built before, and was taken from the user's cache.
        use: How its profiles were cut, where it was said how often each length is asked for.
    """

    engine: EngineManifest
    is_from_cache: bool
    use: ProfileUse | None = None


@reads_bundles
def build_engine(
    bundle: Bundle, *, options: BuildOptions | None = None, progress: ProgressCallback | None = None
) -> EngineBuild:
    """Build an engine from a graph of the bundle and store it there.

    The network is strongly typed: every layer computes in the dtype that the graph gives it.

    Args:
        bundle: The bundle to read the graph from and to write the engine into.
        options: What to build; None for the defaults.
        progress: Called with every step; whatever it raises cancels the build, as does Ctrl-C.

    Raises:
        BackendUnavailableError: The flavour is not installed, or needs a GPU that is not there.
        BundleError: The bundle has no such graph, or an engine of this name and ``overwrite`` is not set.
        ConfigError: A compute capability is not one that the flavour builds for, or the cache cannot be trusted.
        ProfileError: A profile is malformed or outside the range of the graph.
        InputError: What is said of lengths is malformed or outside the range of the graph.
        EngineBuildError: TensorRT refused the graph or failed to build it.
    """
    options = options or BuildOptions()
    graph = bundle.get_graph(options.graph)
    flavour = choose_flavour(options)
    profiles, use = choose_profiles(graph, bundle.manifest.interface, options, flavour)
    if not options.overwrite:
        bundle.check_engine_name(options.engine_name)
    trt = import_flavour(flavour)
    targets = choose_targets(trt, flavour, options.compute_capabilities, SCHEMES_BY_NAME.get(graph.precision))
    plan = _Plan(bundle, options, flavour, trt, targets, profiles)

    def build() -> tuple[EngineManifest, bytes]:
        return _build(plan, progress)

    cache = EngineCache.open() if options.cache else None
    engine, content, is_from_cache = (*build(), False) if cache is None else cache.fetch(plan.get_key(), build)
    engine = replace(engine, name=options.engine_name, graph=options.graph)
    bundle.write_engine(engine, content, overwrite=options.overwrite)
    return EngineBuild(engine, is_from_cache, use)


@dataclass(frozen=True)
class _Plan:
    """What is to be built, every choice made."""

    bundle: Bundle
    options: BuildOptions
    flavour: Flavour
    trt: Any
    targets: dict[str, Any]
    profiles: tuple[dict[str, ProfileShapes], ...]

    def get_key(self) -> str:
        """Return the sha256 of all that the engine depends on: graph and weights, TensorRT, targets and options."""
        graph = self.bundle.get_graph(self.options.graph)
        values = {
            "tool": __version__,
            "contract": asdict(graph),
            "files": {name: sha for name, sha in self.bundle.manifest.files.items() if name.startswith(graph.file)},
            "flavour": [self.flavour.name, self.trt.__version__],
            "targets": list(self.targets),
            "profiles": [{name: asdict(shapes) for name, shapes in one.items()} for one in self.profiles],
            "workspace_bytes": self.options.workspace_bytes,
            "tf32": self.options.tf32,
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _build(plan: _Plan, progress: ProgressCallback | None) -> tuple[EngineManifest, bytes]:
    """Build an engine; its manifest and content."""
    bundle, options, flavour, trt = plan.bundle, plan.options, plan.flavour, plan.trt
    graph = bundle.get_graph(options.graph)
    started = time.perf_counter()
    parsed = parse_network(flavour, bundle.get_graph_path(options.graph))
    builder, network = parsed.builder, parsed.network
    inputs, outputs = read_tensors(network, graph)

    watch = BuildWatch(progress)
    config = _configure_builder(trt, builder, options, plan.targets, plan.profiles)
    monitor = create_monitor(trt, watch)
    config.progress_monitor = monitor
    with collect_errors() as errors, watch.catch_interrupt():
        built = builder.build_serialized_network(network, config)
    watch.raise_error()
    if built is None:
        has_limit = options.workspace_bytes is not None
        raise EngineBuildError(_describe_failure(flavour, trt.__version__, graph, errors, has_limit=has_limit))
    content = bytes(built)

    engine = EngineManifest(
        name=options.engine_name,
        flavour=flavour.name,
        version=trt.__version__,
        targets=tuple(plan.targets),
        graph=options.graph,
        graph_sha256=bundle.manifest.files[graph.file],
        engine_sha256=hashlib.sha256(content).hexdigest(),
        profiles=plan.profiles,
        inputs=inputs,
        outputs=outputs,
        num_layers=network.num_layers,
        layer_dtypes=count_layer_dtypes(network),
        build_seconds=round(time.perf_counter() - started, 3),
        size_bytes=len(content),
        workspace_bytes=options.workspace_bytes,
        tf32=options.tf32,
    )
    return engine, content


def _configure_builder(
    trt: Any,
    builder: Any,
    options: BuildOptions,
    targets: Mapping[str, Any],
    profiles: Sequence[Mapping[str, ProfileShapes]],
) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the engine can tell its layers
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    Features(trt).set_targets(config, (target for target in targets.values() if target is not None))
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, shape.min, shape.opt, shape.max)
        config.add_optimization_profile(profile)
    return config


def _describe_failure(
    flavour: Flavour, version: str, graph: GraphSpec, errors: Sequence[str], *, has_limit: bool
) -> str:
    reason = errors[-1] if errors else "it gave no reason"
    if _TURING_REFUSAL in reason:
        cure = "leave compute capability 7.5 out: it has no fp32 matrix products"
    elif _ATTENTION_REFUSAL in reason:
        reason = "it has no kernel for the operator Attention in fp32, nor in fp16 for every width of the heads"
        cure = f"export again with --opset {DEFAULT_OPSET}, which has attention written out"
    elif _WORKSPACE_REFUSAL in reason:
        cure = "raise --workspace-mib, or leave it out"
    elif _OUT_OF_MEMORY in reason and has_limit:
        # Without a GPU, any limit ends there for graphs of more than a few nodes (TensorRT-RTX 1.7.1).
        cure = "leave --workspace-mib out, or build where the GPU is"
    else:
        cure = "try another profile or target to see whether it depends on them"
    return f"{flavour.title} {version} could not build {graph.file}: {reason}; {cure}"
