"""From a checkpoint to a bundle: load, lower, trace, check, write."""

from __future__ import annotations

import platform
import shutil
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from flash_export.bundle import (
    GRAPH_FILE,
    HELDOUT_FILE,
    HELDOUT_TEXT_FILE,
    MANIFEST_FILE,
    QUANTIZATION_FILE,
    Bundle,
)
from flash_export.config import FORWARD, ExportOptions
from flash_export.errors import BundleError, CheckpointError
from flash_export.exporters.graphs import build_graph_module, count_state_bytes, describe_graphs
from flash_export.exporters.islands import choose_islands
from flash_export.exporters.lowering.pieces import join_projections
from flash_export.exporters.lowering.precision import FP32
from flash_export.exporters.lowering.registry import lower_model
from flash_export.exporters.promises import check_promises, check_traced_sizes
from flash_export.exporters.quantization.rewrite import quantize_graph
from flash_export.exporters.serialization import SplitModels, write_models
from flash_export.exporters.traced_sizes import choose_traced_sizes
from flash_export.exporters.tracing import trace_model
from flash_export.files import hash_files, replace_folder
from flash_export.manifest import Manifest, ModelFacts
from flash_export.models.checkpoint import load_checkpoint
from flash_export.models.registry import get_family
from flash_export.probes import LOGITS, PROBES_FILE, Probe, ProbeMap
from flash_export.progress import Steps

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from flash_export.exporters.quantization.plan import Quantization
    from flash_export.manifest import GraphSpec
    from flash_export.models.base import ReferenceModel
    from flash_export.models.checkpoint import Checkpoint
    from flash_export.progress import ProgressCallback

FLOPS_SEQ_LEN = 1024
VERSIONED_PACKAGES = ("flash-export", "torch", "onnx", "onnxscript", "onnx-ir", "numpy", "safetensors")


NUM_STEPS = 7


def export_onnx(
    checkpoint: str | Path,
    output: str | Path,
    *,
    options: ExportOptions | None = None,
    family: str | None = None,
    config: Mapping[str, Any] | None = None,
    library_version: str | None = None,
    weights_key: str | None = None,
    assume_defaults: bool = False,
    force: bool = False,
    quantization: Quantization | None = None,
    progress: ProgressCallback | None = None,
) -> Bundle:
    """Export a checkpoint as a bundle.

    Args:
        checkpoint: Checkpoint folder or foreign weights file, see :func:`load_checkpoint`, which says more about what
            is passed on to it; or a bundle, whose provenance is then carried on.
        output: Folder to create.
        options: Opset, axes and mask.
        family: Model family of a foreign file.
        config: Constructor arguments of a foreign file, or fields to replace in a folder's config.
        library_version: Release of the library that foreign weights were trained with.
        weights_key: Which weights of a file that holds several sets.
        assume_defaults: Take that library's defaults for arguments that nobody told.
        force: Replace a bundle that is there, with its engines and reports.
        quantization: What :func:`quantize_bundle` decided; None: nothing is quantized.
        progress: Called before each step.

    Returns:
        The bundle, opened and checked.

    Raises:
        FlashExportError: The checkpoint or an option is unusable, or the output cannot be written; ``output`` is then
            as it was before.
        GraphError: The graph breaks one of its promises.
    """
    options = options or ExportOptions()
    target = Path(output)
    check_output(target, force=force)
    steps = Steps(progress, NUM_STEPS)
    steps.begin("loading the checkpoint")
    loaded = _load(
        Path(checkpoint),
        family=family,
        config=config,
        library_version=library_version,
        weights_key=weights_key,
        assume_defaults=assume_defaults,
    )
    steps.begin("measuring the ranges")
    precision, precision_facts = FP32, None
    if options.precision != "fp32":
        choice = choose_islands(loaded.model, loaded.folder, options)
        precision, precision_facts = choice.precision, choice.facts
    graphs, window = describe_graphs(loaded.model.config, options, precision), loaded.model.config.window
    if quantization:
        graphs = {name: replace(graph, precision=quantization.plan.scheme) for name, graph in graphs.items()}
        loaded = replace(loaded, provenance=quantization.provenance)
    provenance, imported = loaded.provenance, loaded.imported
    facts = _describe_model(loaded.model, options, graphs)
    with replace_folder(target, overwrite=force) as staging:
        steps.begin("lowering")
        loaded.model.save_pretrained(staging)
        _copy_heldout(loaded.folder, staging)
        lowered = lower_model(loaded.model, precision)
        if quantization:
            join_projections(lowered)
        del loaded  # its weights are on disk; together with the lowered ones they would be twice in memory
        steps.begin("tracing")
        models = SplitModels(f"{GRAPH_FILE}.data")
        for name, graph in graphs.items():
            module = build_graph_module(name, lowered)
            sizes = choose_traced_sizes(module, window, graph)
            traced = trace_model(module, graph, sizes)
            check_traced_sizes(traced.model, sizes)
            if quantization:
                quantize_graph(traced.model, quantization.plan)
            models.add(graph.file, traced.model)
            if name == FORWARD:
                probes = _describe_probes(lowered, traced.probes)
        steps.begin("checking the promises")
        for graph in graphs.values():
            skeleton = models.skeletons[graph.file]
            check_promises(skeleton, graph.inputs, graph.outputs)
            # Where onnxruntime knows that two blocks have values of the same shape, it keeps one buffer for both all
            # the time: twice the memory of letting go of it in between.
            del skeleton.graph.value_info[:]
        steps.begin("writing")
        write_models(models, staging)
        (staging / PROBES_FILE).write_text(probes.to_json(), encoding="utf-8")
        if quantization:
            (staging / QUANTIZATION_FILE).write_text(quantization.record, encoding="utf-8")
        steps.begin("hashing")
        written = sorted(staging.iterdir())
        manifest = Manifest(
            versions=_read_versions(),
            graphs=graphs,
            checkpoint=provenance,
            files={path.name: digest for path, digest in zip(written, hash_files(written), strict=True)},
            model=facts,
            precision=precision_facts,
            imported=imported,
        )
        (staging / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(target)


def _load(checkpoint: Path, *, config: Mapping[str, Any] | None, **arguments: Any) -> Checkpoint:
    """Load the checkpoint; of a bundle only if it is unchanged, and with what it knows of its own checkpoint."""
    bundle = Bundle.open(checkpoint) if (checkpoint / MANIFEST_FILE).is_file() else None
    loaded = load_checkpoint(checkpoint, config=config, **arguments)
    if bundle is None:
        return loaded
    hidden = get_family(loaded.model.config.model_type).hidden_arguments
    told = [argument for argument, field in hidden.items() if field in (config or {})]
    return replace(loaded, provenance=bundle.manifest.checkpoint, imported=bundle.manifest.imported.forget(told))


def check_output(target: Path, *, force: bool) -> None:
    """Refuse to write where something else is.

    Raises:
        BundleError: ``target`` is a file, another folder, or a bundle and ``force`` is not set.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise BundleError(f"{target} is a file; give the name of a folder to create")
    is_bundle = (target / MANIFEST_FILE).is_file()
    if not is_bundle and any(target.iterdir()):
        raise BundleError(f"{target} holds other files and is no bundle; choose another folder")
    if is_bundle and not force:
        raise BundleError(f"{target} already holds a bundle; add --force to replace it, with its engines and reports")


def _copy_heldout(folder: Path | None, staging: Path) -> None:
    if folder is None or not (folder / HELDOUT_FILE).is_file():
        return
    if not (folder / HELDOUT_TEXT_FILE).is_file():
        raise CheckpointError(f"{folder} has {HELDOUT_FILE} but no {HELDOUT_TEXT_FILE}; add it or remove both")
    for name in (HELDOUT_FILE, HELDOUT_TEXT_FILE):
        shutil.copyfile(folder / name, staging / name)


def _describe_probes(lowered: nn.Module, probes: tuple[Probe, ...]) -> ProbeMap:
    """Return where the forward graph can be read; its output is a quantity of the model too."""
    orders = {name: tuple(order) for name, order in cast("dict[str, list[int]]", lowered.orders).items()}
    return ProbeMap(FORWARD, orders, (*probes, Probe(LOGITS, LOGITS)))


def _read_versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in VERSIONED_PACKAGES}}


def _describe_model(model: ReferenceModel, options: ExportOptions, graphs: Mapping[str, GraphSpec]) -> ModelFacts:
    config = model.config
    lengths = sorted({min(FLOPS_SEQ_LEN, options.max_seq_len), options.max_seq_len})
    return ModelFacts(
        model_type=config.model_type,
        num_parameters=model.count_parameters(),
        num_blocks=config.to_dict()["depth"],
        flops_per_token={str(seq_len): 2 * config.count_macs(seq_len) // seq_len for seq_len in lengths},
        state_bytes=max(map(count_state_bytes, graphs.values())),
    )
