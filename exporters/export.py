"""From a checkpoint to a bundle: load, lower, trace, check, write."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flash_export.bundle import (
    GRAPH_FILE,
    HELDOUT_FILE,
    HELDOUT_TEXT_FILE,
    MANIFEST_FILE,
    Bundle,
)
from flash_export.config import FORWARD, ExportOptions
from flash_export.errors import BundleError, CheckpointError
from flash_export.exporters.graphs import build_graph_module, count_state_bytes, describe_graphs
from flash_export.exporters.lowering.registry import lower_model
from flash_export.exporters.promises import check_promises
from flash_export.exporters.serialization import SplitModels, write_models
from flash_export.exporters.traced_sizes import choose_traced_sizes
from flash_export.exporters.tracing import trace_model
from flash_export.exporters.variants import choose_variant
from flash_export.files import hash_files, replace_folder
from flash_export.manifest import Manifest, ModelFacts
from flash_export.models.checkpoint import load_checkpoint
from flash_export.probes import PROBES_FILE, Probe, ProbeMap

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flash_export.exporters.lowering.base import LoweredModel
    from flash_export.exporters.quantization.plan import Quantization
    from flash_export.manifest import GraphSpec
    from flash_export.models.base import ReferenceModel

FLOPS_SEQ_LEN = 1024
VERSIONED_PACKAGES = ("flash-export", "torch", "onnx", "onnxscript", "onnx-ir", "numpy", "safetensors")


@dataclass(frozen=True)
class ExportStage:
    """A step of the export, for progress display."""

    index: int
    total: int
    text: str


STAGES = (
    "Loading the checkpoint",
    "Measuring the ranges",
    "Lowering",
    "Tracing",
    "Checking the promises",
    "Writing",
    "Hashing",
)


def export_onnx(
    checkpoint: str | Path,
    output: str | Path,
    *,
    options: ExportOptions | None = None,
    family: str | None = None,
    config: Mapping[str, Any] | None = None,
    force: bool = False,
    on_stage: Callable[[ExportStage], None] | None = None,
    quantization: Quantization | None = None,
) -> Bundle:
    """Export a checkpoint as a bundle.

    Args:
        checkpoint: Checkpoint folder or foreign weights file, see :func:`load_checkpoint`.
        output: Folder to create.
        options: Opset, axes and mask.
        family: Model family of a foreign file.
        config: Constructor arguments of a foreign file, or fields to replace in a folder's config.
        force: Replace a bundle that is there, with its engines and reports.
        on_stage: Called at the start of each step.
        quantization: What :func:`quantize_bundle` decided; None: nothing is quantized.

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

    def start(index: int) -> None:
        if on_stage:
            on_stage(ExportStage(index, len(STAGES), STAGES[index]))

    start(0)
    loaded = load_checkpoint(checkpoint, family=family, config=config)
    start(1)
    variant = choose_variant(loaded, options, quantization)
    graphs = describe_graphs(loaded.model.config, options, variant.precision)
    graphs = {name: replace(graph, precision=variant.name) for name, graph in graphs.items()}
    provenance = quantization.provenance if quantization else loaded.provenance
    facts = _describe_model(loaded.model, options, graphs)
    with replace_folder(target) as staging:
        start(2)
        loaded.model.save_pretrained(staging)
        _copy_heldout(loaded.folder, staging)
        lowered = lower_model(loaded.model, variant.precision)
        variant.prepare(lowered)
        del loaded  # its weights are on disk; together with the lowered ones they would be twice in memory
        start(3)
        models, sizes = SplitModels(f"{GRAPH_FILE}.data"), {}
        for name, graph in graphs.items():
            module = build_graph_module(name, lowered)
            sizes[name] = choose_traced_sizes(module, lowered.config.interface.window, graph, variant.block_size)
            traced = trace_model(module, graph, sizes[name])
            variant.rewrite(traced.model)
            models.add(graph.file, traced.model)
            if name == FORWARD:
                probes = _describe_probes(lowered, traced.probes)
        start(4)
        for name, graph in graphs.items():
            skeleton = models.skeletons[graph.file]
            check_promises(skeleton, sizes[name], graph.inputs, graph.outputs)
            # Where onnxruntime knows that two blocks have values of the same shape, it keeps one buffer for both all
            # the time: twice the memory of letting go of it in between.
            del skeleton.graph.value_info[:]
        start(5)
        write_models(models, staging)
        (staging / PROBES_FILE).write_text(probes.to_json(), encoding="utf-8")
        for name, text in variant.files.items():
            (staging / name).write_text(text, encoding="utf-8")
        start(6)
        written = sorted(staging.iterdir())
        manifest = Manifest(
            versions=_read_versions(),
            graphs=graphs,
            checkpoint=provenance,
            files={path.name: digest for path, digest in zip(written, hash_files(written), strict=True)},
            model=facts,
            precision=variant.facts,
        )
        (staging / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(target)


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


def _describe_probes(lowered: LoweredModel, probes: tuple[Probe, ...]) -> ProbeMap:
    """Return where the forward graph can be read; its outputs are quantities of the model too."""
    orders = {name: tuple(order) for name, order in lowered.orders.items()}
    outputs = (Probe(spec.name, spec.name) for spec in lowered.config.interface.outputs)
    return ProbeMap(FORWARD, orders, (*probes, *outputs))


def _read_versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in VERSIONED_PACKAGES}}


def _describe_model(model: ReferenceModel, options: ExportOptions, graphs: Mapping[str, GraphSpec]) -> ModelFacts:
    config = model.config
    longest = config.interface.find_longest(options.max_seq_len)
    lengths = sorted({min(FLOPS_SEQ_LEN, longest), longest})
    return ModelFacts(
        model_type=config.model_type,
        num_parameters=model.count_parameters(),
        num_blocks=config.num_blocks,
        flops_per_token={str(seq_len): 2 * config.count_macs(seq_len) // seq_len for seq_len in lengths},
        state_bytes=max(map(count_state_bytes, graphs.values())),
    )
