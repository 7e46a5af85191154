"""The forward graph behind Triton's own backends: no Python in the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.bundle.manifest import METADATA_PREFIX
from flash_export.config import FORWARD, TENSORRT
from flash_export.errors import BundleError
from flash_export.interface import BATCH, SEQ
from flash_export.serving.folder import ModelFolder, check_precision, describe_origin, describe_run, take_graph
from flash_export.serving.model_config import (
    Config,
    describe_batching,
    describe_instances,
    describe_parameters,
    describe_tensor,
    describe_warm_up,
    has_batch_axis,
)
from flash_export.suggest import list_known

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle
    from flash_export.bundle.manifest import EngineManifest, GraphSpec
    from flash_export.serving.options import TritonOptions

ONNX_PLATFORM, PLAN_PLATFORM = "onnxruntime_onnx", "tensorrt_plan"
PLAN_FILE = "model.plan"
_WARM_UP_CHUNKS = (1, 2, 4)


def describe_forward(bundle: Bundle, name: str, options: TritonOptions) -> ModelFolder:
    """Describe a model that answers whole inputs. Triton batches requests of equal shapes, and no others.

    Raises:
        BundleError: There is no such engine, Triton cannot load it, or onnxruntime cannot compute the graph.
    """
    graph = bundle.get_graph()
    if options.engine is not None:
        return _describe_engine(bundle, name, options, _find_engine(bundle, options.engine))
    check_precision(bundle, graph, options)
    limit = graph.axes[BATCH].max
    config = {
        **_describe_shapes(graph, name, options, limit),
        "platform": ONNX_PLATFORM,
        "default_model_filename": graph.file,
        "instance_group": describe_instances(options),
        "parameters": describe_parameters(describe_run(bundle, FORWARD, options)),
        "model_warmup": describe_warm_up(
            graph.inputs, _choose_warm_up(bundle, graph), is_batched=has_batch_axis(graph)
        ),
    }
    return ModelFolder(name, FORWARD, config, take_graph(bundle, FORWARD))


def _describe_shapes(graph: GraphSpec, name: str, options: TritonOptions, limit: int) -> Config:
    """Return name, tensors and batching of a model whose runs take ``limit`` rows at most."""
    is_batched = has_batch_axis(graph)
    return {
        "name": name,
        "max_batch_size": min(limit, options.max_batch or limit) if is_batched else 0,
        "input": [describe_tensor(spec, graph.axes, is_batched=is_batched) for spec in graph.inputs],
        "output": [describe_tensor(spec, graph.axes, is_batched=is_batched) for spec in graph.outputs],
        **({"dynamic_batching": describe_batching(options)} if is_batched else {}),
    }


def _choose_warm_up(bundle: Bundle, graph: GraphSpec) -> list[dict[str, int]]:
    """Return lengths that are whole chunks, as far as the graph takes them; one request if there is one length."""
    interface, batch = bundle.manifest.interface, graph.axes[BATCH].min
    if not any(SEQ in spec.shape for spec in graph.inputs):
        return [{BATCH: batch}]
    lengths = [max(chunks * interface.chunk_size, interface.min_len) for chunks in _WARM_UP_CHUNKS]
    bounds = graph.axes[SEQ]
    return [{BATCH: batch, SEQ: size} for size in sorted({min(max(one, bounds.min), bounds.max) for one in lengths})]


def _find_engine(bundle: Bundle, name: str) -> EngineManifest:
    """Return an engine that Triton's TensorRT backend can load.

    Raises:
        BundleError: There is none of that name, it is of another flavour, or of another graph.
    """
    engines = {engine.name: engine for engine in bundle.list_engines()}
    if name not in engines:
        known = list_known(name, engines) if engines else "none; build one with 'flash-export trt'"
        raise BundleError(f"{bundle.path} has no engine {name!r}; it has {known}")
    engine = engines[name]
    if engine.flavour != TENSORRT.name:
        raise BundleError(
            f"engine {name} is of {engine.flavour}, and Triton's backend loads {TENSORRT.name} alone; build one with "
            f"'flash-export trt --flavour {TENSORRT.name}' on the GPU that will serve it"
        )
    if engine.graph != FORWARD:
        raise BundleError(f"engine {name} is of the graph {engine.graph}; give one of {FORWARD}")
    return engine


def _describe_engine(bundle: Bundle, name: str, options: TritonOptions, engine: EngineManifest) -> ModelFolder:
    """Describe a model around an engine: an instance for each of its profiles."""
    graph = bundle.get_graph()
    spec = graph.inputs[0]
    profiles = [profile[spec.name] for profile in engine.profiles]
    largest = max(shapes.max[spec.shape.index(BATCH)] for shapes in profiles)
    warm_up = [
        {axis: size for axis, size in zip(spec.shape, shapes.opt, strict=True) if isinstance(axis, str)}
        for shapes in profiles
    ]
    config = {
        **_describe_shapes(graph, name, options, largest),
        "platform": PLAN_PLATFORM,
        "default_model_filename": PLAN_FILE,
        "instance_group": [
            {"count": options.instances, "kind": "KIND_GPU", "profile": [str(index)]}
            for index in range(len(engine.profiles))
        ],
        "parameters": describe_parameters(
            {
                **describe_origin(bundle, FORWARD),
                f"{METADATA_PREFIX}engine": f"{engine.flavour} {engine.version}, built for {', '.join(engine.targets)}",
            }
        ),
        "model_warmup": describe_warm_up(graph.inputs, warm_up, is_batched=has_batch_axis(graph)),
    }
    return ModelFolder(name, FORWARD, config, {PLAN_FILE: (bundle.get_engine_path(engine), engine.engine_sha256)})
