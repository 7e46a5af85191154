"""From a checkpoint to a bundle: load, lower, trace, check, write."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flash_export.bundle.bundle import GRAPH_FILE, MANIFEST_FILE, SETTINGS_FILE, Bundle, name_probes_file
from flash_export.bundle.manifest import Manifest, ModelFacts
from flash_export.bundle.origin import read_origin
from flash_export.config import FORWARD, WEIGHTS_FILE, ExportOptions
from flash_export.data.heldout import load_heldout, read_data
from flash_export.data.sources import Data, RandomSource
from flash_export.errors import CheckpointError, InputError
from flash_export.exporters.graphs import build_graph_module, count_state_bytes, describe_graphs, find_longest
from flash_export.exporters.islands import choose_islands
from flash_export.exporters.lowering.precision import FP32
from flash_export.exporters.lowering.registry import lower_model
from flash_export.exporters.output import check_graphs, check_output, read_versions
from flash_export.exporters.promises import check_traced_sizes
from flash_export.exporters.self_description import describe_in_graph
from flash_export.exporters.serialization import SplitModels, write_models
from flash_export.exporters.traced_sizes import choose_traced_sizes
from flash_export.exporters.tracing import trace_model
from flash_export.files import hash_file, hash_folder, replace_folder
from flash_export.models.checkpoint import load_checkpoint
from flash_export.models.registry import get_family
from flash_export.probes import Point, Probe, ProbeMap
from flash_export.progress import Steps

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flash_export.bundle.manifest import GraphSpec
    from flash_export.data.heldout import Heldout
    from flash_export.exporters.lowering.base import LoweredModel
    from flash_export.models.base import ReferenceModel
    from flash_export.models.checkpoint import Checkpoint
    from flash_export.progress import ProgressCallback

FLOPS_SEQ_LEN = 1024


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
    heldout_file: str | Path | None = None,
    force: bool = False,
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
        heldout_file: Data to put into the bundle, for validation, ranges and quantization, see docs/data.md; None: what
            a checkpoint folder has.
        force: Replace a bundle that is there, with its engines and reports.
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
    if options.waveform:
        loaded = replace(loaded, model=_take_waveform(loaded.model))
    steps.begin("measuring the ranges")
    heldout = _read_heldout(loaded, heldout_file, find_longest(loaded.model.config.interface, options))
    data = Data(RandomSource(loaded.model.config.interface), None if heldout is None else heldout.source)
    half = None if options.precision == "fp32" else choose_islands(loaded.model, data, options)
    precision = half.precision if half else FP32
    graphs = describe_graphs(loaded.model.config, options, precision)
    provenance, imported, interface = loaded.provenance, loaded.imported, loaded.model.config.interface
    facts = _describe_model(loaded.model, options, graphs)
    with replace_folder(target, overwrite=force) as staging:
        steps.begin("lowering")
        loaded.model.save_pretrained(staging)
        weights_sha256 = hash_file(staging / WEIGHTS_FILE)
        _write_heldout(heldout, staging)
        lowered = lower_model(loaded.model, precision, options.opset)
        del loaded  # its weights are on disk; together with the lowered ones they would be twice in memory
        steps.begin("tracing")
        models, probes = SplitModels(f"{GRAPH_FILE}.data"), {}
        for name, graph in graphs.items():
            module = build_graph_module(name, lowered)
            sizes = choose_traced_sizes(module, interface, graph)
            traced = trace_model(module, graph, sizes)
            check_traced_sizes(traced.model, sizes)
            describe_in_graph(
                traced.model, name, graph, interface, family=lowered.config.model_type, weights_sha256=weights_sha256
            )
            models.add(graph.file, traced.model)
            probes[name] = _describe_probes(name, lowered, traced.probes)
        steps.begin("checking the promises")
        check_graphs(models, graphs)
        steps.begin("writing")
        write_models(models, staging)
        for name, known in probes.items():
            if known.probes:
                (staging / name_probes_file(name)).write_text(known.to_json(), encoding="utf-8")
        steps.begin("hashing")
        manifest = Manifest(
            versions=read_versions(),
            interface=interface,
            graphs=graphs,
            checkpoint=provenance,
            files=hash_folder(staging),
            model=facts,
            precision=half.facts if half else None,
            imported=imported,
        )
        (staging / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(target)


def _load(checkpoint: Path, *, config: Mapping[str, Any] | None, **arguments: Any) -> Checkpoint:
    """Load the checkpoint; of a bundle only if it is unchanged, and with what it knows of its own checkpoint."""
    origin = read_origin(checkpoint)
    loaded = load_checkpoint(checkpoint, config=config, **arguments)
    if origin is None:
        return loaded
    hidden = get_family(loaded.model.config.model_type).hidden_arguments
    told = [argument for argument, field in hidden.items() if field in (config or {})]
    return replace(loaded, provenance=origin.checkpoint, imported=origin.imported.forget(told))


def _take_waveform(model: ReferenceModel) -> ReferenceModel:
    """Return a model of the same weights that takes a waveform.

    Raises:
        ConfigError: There is none.
    """
    config = model.config.take_waveform()
    hearing = get_family(config.model_type).model_class(config)
    hearing.load_state_dict(model.state_dict(), assign=True)
    return hearing.requires_grad_(requires_grad=False).eval()


def _read_heldout(loaded: Checkpoint, path: str | Path | None, longest: int) -> Heldout | None:
    """Return the data that the bundle is to hold: a file that was given, or what the checkpoint folder has.

    Raises:
        InputError: The file cannot be used.
        CheckpointError: The folder's data cannot.
    """
    interface = loaded.model.config.interface
    if path is not None:
        return read_data(Path(path), interface, longest)
    return None if loaded.folder is None else load_heldout(loaded.folder, interface, CheckpointError)


def _write_heldout(heldout: Heldout | None, staging: Path) -> None:
    if heldout is not None:
        (staging / SETTINGS_FILE).write_text(heldout.settings.to_json(), encoding="utf-8")
        copy = Path(shutil.copyfile(heldout.path, staging / heldout.file_name))
        if hash_file(copy) != heldout.sha256:
            raise InputError(f"{heldout.path} was changed while it was read; export again")


def _describe_probes(name: str, lowered: LoweredModel, probes: tuple[Probe, ...]) -> ProbeMap:
    """Return where a graph can be read; the outputs of the model are quantities too."""
    if name != FORWARD:
        carried = lowered.config.carried_state
        if carried is None:
            return ProbeMap(name, {}, ())
        kinds = {one: quantity.kind for one, quantity in carried.quantities.items()}
        probes = tuple(probe for probe in probes if kinds[Point.parse(probe.name).quantity] != "pairs")
    orders = {name: tuple(order) for name, order in lowered.orders.items()}
    outputs = (Probe(spec.name, spec.name) for spec in lowered.config.interface.outputs)
    return ProbeMap(name, orders, (*probes, *outputs))


def _describe_model(model: ReferenceModel, options: ExportOptions, graphs: Mapping[str, GraphSpec]) -> ModelFacts:
    config = model.config
    longest = find_longest(config.interface, options)
    state_bytes, state_bytes_per_token = max(map(count_state_bytes, graphs.values()))
    lengths = sorted({min(FLOPS_SEQ_LEN, longest), longest})
    return ModelFacts(
        model_type=config.model_type,
        num_parameters=model.count_parameters(),
        num_blocks=config.num_blocks,
        flops_per_token={str(seq_len): 2 * config.count_macs(seq_len) // seq_len for seq_len in lengths},
        state_bytes=state_bytes,
        state_bytes_per_token=state_bytes_per_token,
    )
