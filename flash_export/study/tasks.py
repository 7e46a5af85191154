"""The tasks of a study, each done by a process of its own, and what each finds.

A task reads and writes the study's folder: ``models/NAME`` has the checkpoint and the bundles of a model. What it finds
is returned, and kept by whoever runs the tasks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flash_export.config import ATTENTION_OPSET, DEFAULT_OPSET, ExportOptions
from flash_export.models.checkpoint import load_pretrained
from flash_export.study.config import CAUSAL, StudyConfig
from flash_export.study.objective import VOCAB_SIZES
from flash_export.study.systems import build_config
from flash_export.study.trained import TRAINING_FILE
from flash_export.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flash_export.models.base import ModelConfig
    from flash_export.study.config import ModelEntry
    from flash_export.validators.trade_off.results import Timing

# Of a study, and then of tuning.
Kind = Literal["train", "export", "export-long", "validate", "score", "time", "make", "judge"]
FOOTPRINT_S = 60.0
FUSED, WRITTEN_OUT = "-fused", "written out"
# Backends without ONNX's operator for attention.
KNOW_NO_ATTENTION = ("openvino",)
CHECKPOINT, BUNDLE, LONG_BUNDLE = "checkpoint", "bundle", "bundle-long"


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        kind: What is done.
        model: To which model.
        backend: Where, if that matters.
        seq_len: At which length, if that matters.
        threads: With how many threads, if that matters.
    """

    kind: Kind
    model: str
    backend: str = ""
    seq_len: int = 0
    threads: int = 0

    @property
    def name(self) -> str:
        """A name that no other task has, and that a file can have."""
        threads = f"{self.threads}t" if self.threads else ""
        parts = (self.kind, self.model, self.backend.replace(":", "."), threads, str(self.seq_len or ""))
        return "~".join(filter(None, parts))

    @property
    def is_timed(self) -> bool:
        """Whether nothing else may run beside it."""
        return self.kind == "time"

    def describe(self) -> str:
        """Say what is done."""
        verbs = {"train": "training", "export": "exporting", "export-long": "exporting, to be timed at any length,"}
        words = [verbs.get(self.kind, self.kind.removesuffix("e") + "ing"), self.model]
        words += [f"on {self.backend}"] if self.backend else []
        words += [f"with {self.threads} threads"] if self.threads else []
        words += [f"at {self.seq_len} tokens"] if self.seq_len else []
        return " ".join(words)


@dataclass(frozen=True)
class Planned:
    """A task with what has to be done before it; ``key`` changes with whatever its result depends on."""

    task: Task
    needs: tuple[str, ...]
    key: str


class Planner:
    """Collects tasks, each after those that it needs."""

    def __init__(self) -> None:
        """Begin with none."""
        self.planned: dict[str, Planned] = {}

    def add(self, task: Task, needs: tuple[Task, ...], depends: Mapping[str, Any]) -> Task:
        """Add a task, and return it.

        Args:
            task: The task.
            needs: What has to be done before; its result depends on theirs.
            depends: What else it depends on, as plain JSON.
        """
        keys = [self.planned[one.name].key for one in needs]
        text = json.dumps([asdict(task), __version__, keys, depends], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        self.planned[task.name] = Planned(task, tuple(one.name for one in needs), key)
        return task


def plan_tasks(config: StudyConfig, folder: Path) -> tuple[Planned, ...]:
    """Return the tasks of a study in an order in which they can be done.

    Args:
        config: The study.
        folder: What checkpoints are relative to.
    """
    planner = Planner()
    add = planner.add
    longest = max(config.latency_lens)
    for entry in config.models:
        name = entry.name
        trained = () if entry.checkpoint is not None else (Task("train", name),)
        for task in trained:
            add(task, (), {"size": asdict(config.size), "training": asdict(config.training)})
        source = {"max_seq_len": config.max_seq_len, "checkpoint": _identify(entry, folder)}
        export = add(Task("export", name), trained, source)
        checks = [
            add(Task("validate", name, backend), (export,), {"plan": config.plan, "threads": config.threads})
            for backend in dict.fromkeys((*config.backends, *config.validated_on))
        ]
        long = None
        if longest > config.max_seq_len:
            long = add(Task("export-long", name), (), {"size": asdict(config.size), "longest": longest})
        for backend in config.backends:
            add(Task("score", name, backend), tuple(checks), {"lens": config.quality_lens, "threads": config.threads})
            for seq_len in config.latency_lens:
                extra = () if seq_len <= config.max_seq_len or long is None else (long,)
                depends = {"threads": config.threads, "budget_s": config.budget_s}
                add(Task("time", name, backend, seq_len), (*checks, *extra), depends)
    return tuple(planner.planned.values())


def _identify(entry: ModelEntry, folder: Path) -> str | None:
    """Return what tells a checkpoint that was given from another; None where there is none."""
    if entry.checkpoint is None:
        return None
    from flash_export.files import hash_file
    from flash_export.models.tensor_files import find_weights_file

    return hash_file(find_weights_file(folder / entry.checkpoint))


def run_task(config: StudyConfig, folder: Path, source: Path, task: Task, progress: Callable[[float], None]) -> Any:
    """Do a task and return what it finds, as plain JSON.

    Args:
        config: The study.
        folder: Its folder.
        source: The folder that checkpoints are relative to.
        task: The task; those that it needs are done.
        progress: Called now and then with the share that is done.

    Raises:
        FlashExportError: It cannot be done.
    """
    entry, models = config.get_model(task.model), folder / "models" / task.model
    if task.kind == "train":
        return _train(config, entry, models, progress)
    if task.kind == "export":
        checkpoint = models / CHECKPOINT if entry.checkpoint is None else source / entry.checkpoint
        return _export(checkpoint, models / BUNDLE, config.max_seq_len)
    if task.kind == "export-long":
        return _export_long(config, entry, models)
    if task.kind == "validate":
        return _validate(config, models / BUNDLE, task.backend, progress)
    if task.kind == "score":
        return _score(config, entry, models / BUNDLE, task.backend)
    is_long = task.seq_len > config.max_seq_len
    bundles = _list_bundles(models / (LONG_BUNDLE if is_long else BUNDLE), task.backend)
    found = time_bundles(bundles, task, 1, config.threads, config.budget_s)
    return {**found, "random_weights": is_long}


def choose_model_config(config: StudyConfig, entry: ModelEntry, *, max_positions: int | None = None) -> ModelConfig:
    """Return the config of a model of the study; its positions may be more than those of the study."""
    from dataclasses import replace

    size = config.size if max_positions is None else replace(config.size, max_positions=max_positions)
    vocab_size = VOCAB_SIZES[entry.objective]
    return build_config(entry.system, size, vocab_size=vocab_size, causal=entry.objective == CAUSAL)


def _train(config: StudyConfig, entry: ModelEntry, models: Path, progress: Callable[[float], None]) -> dict[str, Any]:
    import torch

    from flash_export.study.corpus import read_corpus
    from flash_export.study.trained import train_model

    torch.set_num_threads(config.threads)
    training = config.training
    corpus = read_corpus(None if training.text is None else Path(training.text), training.heldout_bytes)
    plan = training.make_plan(entry.objective, entry.seed)
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
    from flash_export.exporters.lowering.registry import LOWERINGS

    forms = {"": DEFAULT_OPSET}
    return forms if LOWERINGS[model_type].fuse_attention is None else {**forms, FUSED: ATTENTION_OPSET}


def _list_bundles(path: Path, backend: str) -> dict[str, Path]:
    """Return the bundles of all forms that were exported and that a backend knows, by form."""
    fused = path.with_name(path.name + FUSED)
    return {WRITTEN_OUT: path, **({"fused": fused} if fused.exists() and backend not in KNOW_NO_ATTENTION else {})}


def _export(checkpoint: Path, target: Path, max_seq_len: int) -> dict[str, Any]:
    from flash_export.exporters.export import export_onnx
    from flash_export.study.systems import count_parameters
    from flash_export.validators.trade_off.candidates import measure_graph_bytes

    model = load_pretrained(checkpoint)
    count = count_parameters(model.config)
    for form, opset in list_forms(model.config.model_type).items():
        options = ExportOptions(opset=opset, max_seq_len=max_seq_len, graphs=("forward",))
        bundle = export_onnx(checkpoint, target.with_name(target.name + form), options=options, force=True)
    training = checkpoint / TRAINING_FILE
    told = json.loads(training.read_text(encoding="utf-8")) if training.exists() else {}
    return {
        "parameters": count.constant,
        "growing_parameters": count.growing,
        "bytes": measure_graph_bytes(bundle)["forward"],
        "config": model.config.to_dict(),
        "tokens_seen": told.get("tokens_seen"),
        "training_sha256": told.get("training_sha256"),
    }


def _export_long(config: StudyConfig, entry: ModelEntry, models: Path) -> dict[str, Any]:
    """Export a model of random weights to the longest length that is timed."""
    import shutil

    from flash_export.study.training import build_model

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


def validate_bundle_on(
    path: Path, backend: str, plan: str, max_seq_len: int | None, threads: int | None, progress: Callable[[float], None]
) -> dict[str, Any]:
    """Validate a bundle on one backend, and return the count of its checks.

    Args:
        path: The bundle.
        backend: Where.
        plan: Which lengths.
        max_seq_len: Longest of them; None: the plan's own.
        threads: Threads of one operator; None: what the backend chooses.
        progress: Called with the share that is done.
    """
    from flash_export.bundle.bundle import Bundle
    from flash_export.validators.validate import ValidationOptions, validate_bundle

    options = ValidationOptions(
        plan=plan, max_seq_len=max_seq_len, backends=(backend,), threads=threads, latency_budget_s=0.0
    )
    report = validate_bundle(Bundle.open(path), options, lambda done, total, _: progress(done / total))
    counts = {status: sum(row.status == status for row in report.rows) for status in ("passed", "failed", "skipped")}
    reasons = [row.reason for row in report.rows if row.status != "passed" and row.reason]
    multiples = [row.max_rel_error / row.noise for row in report.rows if row.max_rel_error is not None and row.noise]
    return {
        **counts,
        "is_right": report.passed and not counts["skipped"],
        "largest_multiple": max(multiples, default=None),
        "reason": reasons[0] if reasons else None,
        "longest": max((row.seq_len or 0 for row in report.rows if row.status == "passed"), default=0),
    }


def _score(config: StudyConfig, entry: ModelEntry, path: Path, backend: str) -> dict[str, Any]:
    """Return the bits a byte of held-out text that the exported model needs."""
    import numpy as np
    import torch

    from flash_export.bundle.bundle import Bundle
    from flash_export.interface import TokenIds
    from flash_export.runtime.backends import find_target
    from flash_export.study.objective import measure_bits_per_byte

    bundle = Bundle.open(path)
    graph = bundle.get_graph("forward")
    heldout = path / "heldout.txt"
    text = np.frombuffer(heldout.read_bytes(), dtype=np.uint8)
    with find_target(bundle, backend, "forward").open(threads=config.threads) as runner:

        def predict(input_ids: torch.Tensor) -> torch.Tensor:
            ids = input_ids.numpy()
            inputs = {
                spec.name: ids if isinstance(spec.content, TokenIds) else np.ones_like(ids) for spec in graph.inputs
            }
            return torch.from_numpy(runner.run(inputs)[graph.outputs[0].name])

        scores = {
            str(seq_len): measure_bits_per_byte(predict, text, entry.objective, seq_len)
            for seq_len in config.quality_lens
        }
    return {"bits_per_byte": scores}


def time_bundles(
    bundles: Mapping[str, Path], task: Task, batch: int, threads: int | None, budget_s: float
) -> dict[str, Any]:
    """Time bundles of one model in turn as a task says, and measure the memory of the fastest in a fresh process.

    Args:
        bundles: The bundles, by the name of their form.
        task: Where, and at which length.
        batch: Rows.
        threads: Threads of one operator; None: what the backend chooses.
        budget_s: Seconds to time each.
    """
    from flash_export.bundle.bundle import Bundle
    from flash_export.data.sources import RandomSource
    from flash_export.runtime.backends import find_target
    from flash_export.validators.footprint import FootprintRequest, measure_footprint
    from flash_export.validators.lengths import Cell
    from flash_export.validators.trade_off.candidates import Candidate
    from flash_export.validators.trade_off.speed import time_forward

    candidates = [Candidate(Bundle.open(path), name) for name, path in bundles.items()]
    source, cell = RandomSource(candidates[0].bundle.manifest.interface), Cell(batch, task.seq_len, masked=False)
    with contextlib.ExitStack() as stack:
        for candidate in candidates:
            target = find_target(candidate.bundle, task.backend, "forward")
            candidate.runner = stack.enter_context(target.open(threads=threads))
        timings = time_forward(candidates, cell, source, budget_s, backend=task.backend, threads=threads)
    best = min(range(len(timings)), key=lambda index: _get_median(timings[index]))
    path = candidates[best].bundle.path.resolve()
    footprint = measure_footprint(
        FootprintRequest(str(path), task.backend, (), threads, batch, (task.seq_len,), FOOTPRINT_S)
    )
    memory = None
    if footprint.session_bytes is not None and footprint.peak_bytes is not None:
        memory = footprint.session_bytes + footprint.peak_bytes
    latency = timings[best].latency_ms
    return {
        "form": candidates[best].name,
        "reason": timings[best].reason,
        "latency_ms": None if latency is None else asdict(latency),
        "memory_bytes": memory,
    }


def _get_median(timing: Timing) -> float:
    return math.inf if timing.latency_ms is None else timing.latency_ms.p50
