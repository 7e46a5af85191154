"""The tasks of a study: each model is trained or read, exported, validated, scored and timed.

A task reads and writes the study's folder: ``models/NAME`` has the checkpoint and the bundles of a model. What it finds
is returned, and kept by whoever runs the tasks.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flash_export.bundle.bundle import Bundle
from flash_export.config import ATTENTION_OPSET, DEFAULT_OPSET, ExportOptions
from flash_export.errors import CheckpointError, ConfigError
from flash_export.exporters.export import export_onnx
from flash_export.exporters.lowering.registry import LOWERINGS
from flash_export.files import hash_file
from flash_export.interface import TokenIds
from flash_export.models.checkpoint import load_pretrained
from flash_export.models.tensor_files import find_weights_file
from flash_export.reading import read_json_object
from flash_export.runtime.backends import find_target
from flash_export.study.corpus import read_corpus
from flash_export.study.measuring import time_bundles, validate_bundle_on
from flash_export.study.objective import VOCAB_SIZES, measure_bits_per_byte
from flash_export.study.systems import build_config, count_parameters, describe_difference
from flash_export.study.tasks import Planner, Task
from flash_export.study.trained import TRAINING_FILE, train_model
from flash_export.study.training import build_model
from flash_export.typed_json import build
from flash_export.validators.trade_off.candidates import measure_graph_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flash_export.models.base import ModelConfig
    from flash_export.study.config import ModelEntry, StudyConfig, Training
    from flash_export.study.corpus import Corpus
    from flash_export.study.tasks import Planned


@dataclass(frozen=True)
class Trained:
    """How a model was trained; None: not known."""

    tokens_seen: int | None = None
    training_sha256: str | None = None
    plan: dict[str, Any] | None = None

    @property
    def recipe_sha256(self) -> str | None:
        """Hash of the plan, but for what differs between models that are compared."""
        if self.plan is None:
            return None
        recipe = {name: value for name, value in self.plan.items() if name not in OF_ONE_MODEL}
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


TRAINED_FIELDS = tuple(one.name for one in fields(Trained))
FUSED, WRITTEN_OUT = "-fused", "written out"
# Backends without ONNX's operator for attention.
KNOW_NO_ATTENTION = ("openvino",)
# Of a training's plan: what may differ between models that were trained alike.
OF_ONE_MODEL = ("objective", "seed", "evaluations")
CHECKPOINT, BUNDLE, LONG_BUNDLE = "checkpoint", "bundle", "bundle-long"


def plan_study(config: StudyConfig, source: Path) -> tuple[Planned, ...]:
    """Return the tasks of a study in an order in which they can be done.

    Args:
        config: The study.
        source: What checkpoints and texts are relative to.
    """
    planner = Planner()
    add = planner.add
    longest, text = max(config.latency_lens), _identify_text(config.training, source)
    for entry in config.models:
        name = entry.name
        trained = () if entry.checkpoint is not None else (Task("train", name),)
        for task in trained:
            choose_model_config(config, entry)  # refuses sizes that cannot be, before anything is done
            add(task, (), {"size": asdict(config.size), "training": asdict(config.training), "text": text})
        read = {"max_seq_len": config.max_seq_len, "checkpoint": _identify(entry, source)}
        export = add(Task("export", name), trained, read)
        checks = [
            add(Task("validate", name, backend), (export,), {"plan": config.plan, "threads": config.threads})
            for backend in dict.fromkeys((*config.backends, *config.validated_on))
        ]
        long = None
        if longest > config.max_seq_len:
            long = add(Task("export-long", name), (), {"size": asdict(config.size), "longest": longest})
        for backend in config.backends:
            heldout = {"text": text, "heldout_bytes": config.training.heldout_bytes, "lens": config.quality_lens}
            add(Task("score", name, backend), tuple(checks), {**heldout, "threads": config.threads})
            for seq_len in config.latency_lens:
                extra = () if seq_len <= config.max_seq_len or long is None else (long,)
                depends = {"threads": config.threads, "budget_s": config.budget_s}
                add(Task("time", name, backend, seq_len), (*checks, *extra), depends)
    return tuple(planner.planned.values())


def _identify(entry: ModelEntry, source: Path) -> str | None:
    """Return what tells a checkpoint that was given from another; None where there is none."""
    if entry.checkpoint is None:
        return None

    return hash_file(find_weights_file(source / entry.checkpoint))


def _identify_text(training: Training, source: Path) -> str:
    """Return what tells the text from another: of the standard library, the release of Python."""
    return platform.python_version() if training.text is None else hash_file(source / training.text)


def run_study(config: StudyConfig, folder: Path, source: Path, task: Task, progress: Callable[[float], None]) -> Any:
    """Do a task and return what it finds, as plain JSON.

    Args:
        config: The study.
        folder: Its folder.
        source: The folder that checkpoints and texts are relative to.
        task: The task; those that it needs are done.
        progress: Called now and then with the share that is done.

    Raises:
        FlashExportError: It cannot be done.
    """
    entry, models = config.get_model(task.model), folder / "models" / task.model
    if task.kind == "train":
        return _train(config, entry, models, _read_corpus(config.training, source), progress)
    if task.kind == "export":
        return _export_entry(config, entry, models, source)
    if task.kind == "export-long":
        return _export_long(config, entry, models)
    if task.kind == "validate":
        return _validate(config, models / BUNDLE, task.backend, progress)
    if task.kind == "score":
        heldout = _read_corpus(config.training, source).heldout
        return _score(config, entry, models / BUNDLE, task.backend, heldout)
    is_long = task.seq_len > config.max_seq_len
    bundles = _list_bundles(models / (LONG_BUNDLE if is_long else BUNDLE), task.backend)
    found = time_bundles(bundles, task, 1, config.threads, config.budget_s)
    return {**found, "random_weights": is_long}


def choose_model_config(config: StudyConfig, entry: ModelEntry, *, max_positions: int | None = None) -> ModelConfig:
    """Return the config of a model of the study; its positions may be more than those of the study."""
    size = config.size if max_positions is None else replace(config.size, max_positions=max_positions)
    vocab_size = VOCAB_SIZES[entry.objective]
    return build_config(entry.system, size, vocab_size=vocab_size, causal=entry.is_causal)


def _read_corpus(training: Training, source: Path) -> Corpus:
    return read_corpus(None if training.text is None else source / training.text, training.heldout_bytes)


def _train(
    config: StudyConfig, entry: ModelEntry, models: Path, corpus: Corpus, progress: Callable[[float], None]
) -> dict[str, Any]:

    torch.set_num_threads(config.threads)
    plan = config.training.make_plan(entry.objective, entry.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models.mkdir(parents=True, exist_ok=True)
    return train_model(
        choose_model_config(config, entry),
        plan,
        corpus,
        models / CHECKPOINT,
        heldout_len=max(config.quality_lens),
        device=device,
        facts={"system": entry.system},
        progress=lambda run, _: progress(run.step / plan.num_steps),
    )


def list_forms(model_type: str) -> dict[str, int]:
    """Return the forms of a family's graph, by what is added to the name of a bundle, and the opset of each.

    An attention that is one operator from some opset on is faster on some backends: the faster form is what counts.
    """
    forms = {"": DEFAULT_OPSET}
    return forms if LOWERINGS[model_type].fuse_attention is None else {**forms, FUSED: ATTENTION_OPSET}


def _list_bundles(path: Path, backend: str) -> dict[str, Path]:
    """Return the bundles of all forms that were exported and that a backend knows, by form."""
    fused = path.with_name(path.name + FUSED)
    return {WRITTEN_OUT: path, **({"fused": fused} if fused.exists() and backend not in KNOW_NO_ATTENTION else {})}


def _export_entry(config: StudyConfig, entry: ModelEntry, models: Path, source: Path) -> dict[str, Any]:
    """Export what was trained here, or a checkpoint that was given, if it is what the study calls it.

    Raises:
        ConfigError: It is a model of another system.
    """
    if entry.checkpoint is None:
        return _export(models / CHECKPOINT, models / BUNDLE, config.max_seq_len)
    checkpoint = source / entry.checkpoint
    difference = describe_difference(load_pretrained(checkpoint).config, entry.system, causal=entry.is_causal)
    if difference is not None:
        raise ConfigError(f"{checkpoint} is no {entry.objective} {entry.system}: {difference}; correct models")
    return _export(checkpoint, models / BUNDLE, config.max_seq_len)


def _export(checkpoint: Path, target: Path, max_seq_len: int) -> dict[str, Any]:

    model = load_pretrained(checkpoint)
    count = count_parameters(model.config)
    for form, opset in list_forms(model.config.model_type).items():
        options = ExportOptions(opset=opset, max_seq_len=max_seq_len, graphs=("forward",))
        bundle = export_onnx(checkpoint, target.with_name(target.name + form), options=options, force=True)
    told = _read_training(checkpoint / TRAINING_FILE)
    return {
        "parameters": count.constant,
        "growing_parameters": count.growing,
        "bytes": measure_graph_bytes(bundle)["forward"],
        "config": model.config.to_dict(),
        "tokens_seen": told.tokens_seen,
        "training_sha256": told.training_sha256,
        "recipe_sha256": told.recipe_sha256,
    }


def _read_training(path: Path) -> Trained:
    """Return what a checkpoint says of its training; nothing, where it has no such file.

    Raises:
        CheckpointError: The file is no JSON of that form.
    """
    if not path.exists():
        return Trained()
    told = read_json_object(path, CheckpointError, cure := "train again, or remove it")
    try:
        return build({name: told[name] for name in TRAINED_FIELDS if name in told}, Trained)
    except ValueError as mismatch:
        raise CheckpointError(f"{path} is not usable: {mismatch}; {cure}") from mismatch


def _export_long(config: StudyConfig, entry: ModelEntry, models: Path) -> dict[str, Any]:
    """Export a model of random weights to the longest length that is timed."""
    longest = max(config.latency_lens)
    model = build_model(choose_model_config(config, entry, max_positions=longest), entry.seed)
    checkpoint = models / "random"
    try:
        model.save_pretrained(checkpoint)
        return _export(checkpoint, models / LONG_BUNDLE, longest)
    finally:
        shutil.rmtree(checkpoint, ignore_errors=True)


def _validate(config: StudyConfig, path: Path, backend: str, progress: Callable[[float], None]) -> dict[str, Any]:
    """Validate every form of a model, and add up their checks."""
    bundles = _list_bundles(path, backend)
    found = [
        validate_bundle_on(one, backend, config.plan, config.max_seq_len, config.threads, progress)
        for one in bundles.values()
    ]
    multiples = [one["largest_multiple"] for one in found if one["largest_multiple"] is not None]
    reasons = (f"{name}: {one['reason']}" for name, one in zip(bundles, found, strict=True) if one["reason"])
    return {
        **{name: sum(one[name] for one in found) for name in ("passed", "failed", "skipped")},
        "is_right": all(one["is_right"] for one in found),
        "largest_multiple": max(multiples, default=None),
        "reason": next(reasons, None),
        "longest": min(one["longest"] for one in found),
    }


def _score(config: StudyConfig, entry: ModelEntry, path: Path, backend: str, heldout: np.ndarray) -> dict[str, Any]:
    """Return the bits a byte that the exported model needs for the text that the study holds out for all."""
    bundle = Bundle.open(path)
    graph = bundle.get_graph("forward")
    with find_target(bundle, backend, "forward").open(threads=config.threads) as runner:

        def predict(input_ids: torch.Tensor) -> torch.Tensor:
            ids = input_ids.numpy()
            inputs = {
                spec.name: ids if isinstance(spec.content, TokenIds) else np.ones_like(ids) for spec in graph.inputs
            }
            return torch.from_numpy(runner.run(inputs)[graph.outputs[0].name])

        scores = {
            str(seq_len): measure_bits_per_byte(predict, heldout, entry.objective, seq_len)
            for seq_len in config.quality_lens
        }
    return {"bits_per_byte": scores}
