"""Tuning one checkpoint: every precision and scheme, on every backend and number of threads that this machine has.

Each way is made, validated, judged by what it loses, and timed, as tasks like those of a study. What loses more than
the budget or fails validation is not timed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flash_export.config import (
    CONFIG_FILE,
    MAX_THREADS,
    SCHEMES,
    SCHEMES_BY_RUNTIME,
    ExportOptions,
    QuantizeOptions,
    check_count,
)
from flash_export.errors import CheckpointError, ConfigError
from flash_export.runtime.backends import ORT_CPU, get_backend
from flash_export.study.measuring import time_bundles, validate_bundle_on
from flash_export.study.tasks import Planner, Task
from flash_export.suggest import list_known

if TYPE_CHECKING:
    from collections.abc import Callable

    from flash_export.study.tasks import Planned

FP32, BF16 = "fp32", "bf16"
# Schemes are those of ``flash-export quantize``, in fp32 but for the last.
QUANTIZED = {scheme: (scheme, FP32) for scheme in SCHEMES} | {"int8-bf16": ("int8", BF16)}
VARIANTS = (FP32, "fp16", BF16, *QUANTIZED)
# What is tried on GPUs alone: runtimes compute it in fp32 on a CPU, by way of casts.
NEEDS_GPU = ("fp16", "fp8")
MAX_SAMPLES = 32


@dataclass(frozen=True)
class TuneConfig:
    """What is tried.

    Attributes:
        kind: What it is.
        checkpoint: A checkpoint folder or an fp32 bundle, an absolute path.
        identity: Hash that tells it from others.
        budget: Largest loss, as a fraction of the score; see ``flash-export quantize``.
        seq_lens: Lengths that matter.
        batch: Rows of a run.
        backends: Where it may run.
        threads: Numbers of threads to try on the CPU.
        variants: ``fp32``, ``fp16``, ``bf16``, schemes of ``flash-export quantize``, and ``int8-bf16``, int8 in bf16.
        max_seq_len: Longest length of the graphs; None: what ``flash-export onnx`` takes.
        plan: ``quick`` or ``full``, see ``flash-export validate``.
        data: A file to judge and calibrate with, an absolute path; None: the checkpoint's held-out data.
        budget_s: Seconds to time one way at one length.
    """

    checkpoint: str
    identity: str
    kind: Literal["tune"] = "tune"
    budget: float = 0.005
    seq_lens: tuple[int, ...] = (512, 2048)
    batch: int = 1
    backends: tuple[str, ...] = ("ort-cpu",)
    threads: tuple[int, ...] = (1,)
    variants: tuple[str, ...] = VARIANTS
    max_seq_len: int | None = None
    plan: Literal["quick", "full"] = "quick"
    data: str | None = None
    budget_s: float = 2.0


def find_reason_against(variant: str, backend: str) -> str | None:
    """Return why a way is not worth a try; None if it is."""
    runs_on, (scheme, precision) = get_backend(backend), QUANTIZED.get(variant, (None, variant))
    if variant in NEEDS_GPU and runs_on.device == "cpu":
        return "fp16 and fp8 are tried on GPUs alone"
    if precision == BF16 and runs_on.device == "cpu" and (said := runs_on.describe_arithmetic(BF16)):
        return said.rstrip(".")
    if scheme is not None and precision == BF16 and backend != "openvino":
        return "int8 in bf16 is for OpenVINO and for engines"
    if scheme is not None and backend == "openvino" and scheme != SCHEMES_BY_RUNTIME[backend]:
        return f"of the schemes, {SCHEMES_BY_RUNTIME[backend]} is for OpenVINO"
    return None


def plan_tuning(config: TuneConfig) -> tuple[Planned, ...]:
    """Return the tasks in an order in which they can be done."""
    planner = Planner()
    made: dict[str, Task] = {}
    common = {"max_seq_len": config.max_seq_len, "identity": config.identity, "data": config.data}
    tried = [
        variant
        for variant in config.variants
        if not all(find_reason_against(variant, backend) for backend in config.backends)
    ]
    for variant in dict.fromkeys((FP32, *tried)):
        needs: tuple[Task, ...] = (made[FP32],) if variant in QUANTIZED else ()
        depends = {**common, "budget": config.budget}
        made[variant] = planner.add(Task("make", variant), needs, depends)
    for variant in tried:
        for backend in config.backends:
            if find_reason_against(variant, backend):
                continue
            check = planner.add(Task("validate", variant, backend), (made[variant],), {"plan": config.plan})
            needs = tuple(dict.fromkeys((made[FP32], made[variant])))
            judge = planner.add(Task("judge", variant, backend), needs, {"budget": config.budget, "data": config.data})
            for threads in config.threads if get_backend(backend).device == "cpu" else (0,):
                for seq_len in config.seq_lens:
                    depends = {"batch": config.batch, "budget_s": config.budget_s}
                    planner.add(Task("time", variant, backend, seq_len, threads), (check, judge), depends)
    return tuple(planner.planned.values())


def run_tuning(config: TuneConfig, folder: Path, task: Task, progress: Callable[[float], None]) -> Any:
    """Do a task and return what it finds, as plain JSON.

    Args:
        config: What is tried.
        folder: Where it is kept.
        task: The task; those that it needs are done.
        progress: Called now and then with the share that is done.

    Raises:
        FlashExportError: It cannot be done.
    """
    bundle = folder / "variants" / task.model
    if task.kind == "make":
        return _make(config, folder, task.model, progress)
    if task.kind == "validate":
        return validate_bundle_on(bundle, task.backend, config.plan, config.max_seq_len, None, progress)
    if task.kind == "judge":
        return _judge(config, folder, task, progress)
    return time_bundles({task.model: bundle}, task, config.batch, task.threads or None, config.budget_s)


def _make(config: TuneConfig, folder: Path, variant: str, progress: Callable[[float], None]) -> dict[str, Any]:
    from flash_export.bundle.bundle import Bundle
    from flash_export.exporters.export import export_onnx
    from flash_export.quantization.quantize import quantize_bundle
    from flash_export.validators.trade_off.candidates import measure_graph_bytes

    target = folder / "variants" / variant
    target.parent.mkdir(parents=True, exist_ok=True)
    data = None if config.data is None else Path(config.data)
    if variant in QUANTIZED:
        scheme, precision = QUANTIZED[variant]
        options = QuantizeOptions(scheme, data=data, budget=config.budget, precision=precision)
        bundle = quantize_bundle(
            Bundle.open(target.with_name(FP32)),
            target,
            options=options,
            force=True,
            progress=lambda done, total, _: progress(done / total),
        )
    else:
        bundle = export_onnx(
            Path(config.checkpoint),
            target,
            options=ExportOptions(precision=variant, max_seq_len=config.max_seq_len),
            heldout_file=data,
            force=True,
            progress=lambda done, total, _: progress(done / total),
        )
    return {"bytes": measure_graph_bytes(bundle)["forward"]}


def _judge(config: TuneConfig, folder: Path, task: Task, progress: Callable[[float], None]) -> dict[str, Any]:
    """Return what a way loses against the fp32 model in float64, on held-out data or random inputs."""
    from flash_export.bundle.bundle import Bundle
    from flash_export.data.heldout import open_heldout
    from flash_export.data.sources import RandomSource
    from flash_export.runtime.backends import find_target
    from flash_export.runtime.eager import EagerRunner
    from flash_export.tasks.registry import get_task
    from flash_export.validators.trade_off.candidates import Candidate
    from flash_export.validators.trade_off.quality import list_random_samples

    reference, bundle = Bundle.open(folder / "variants" / FP32), Bundle.open(folder / "variants" / task.model)
    interface, graph = reference.manifest.interface, bundle.get_graph()
    heldout = open_heldout(reference, None if config.data is None else Path(config.data))
    source = RandomSource(interface)
    if heldout is not None:
        samples = list(heldout.samples[:MAX_SAMPLES])
    else:
        samples = list(list_random_samples([Candidate(bundle, task.model)], source, None))
    judge, expected, found = get_task(interface.task), [], []
    with (
        EagerRunner(reference.load_model(), precision="fp64") as eager,
        find_target(bundle, task.backend, "forward").open() as runner,
    ):
        for index, sample in enumerate(samples):
            progress(index / len(samples))
            expected.append(judge.keep(interface, eager.run(sample.batch.to_model_inputs(masked=False)), sample))
            found.append(judge.keep(interface, runner.run(sample.batch.to_inputs(graph.inputs)), sample))
    loss = judge.measure_loss(expected, found, samples)
    return {
        "loss": loss.share,
        "score": loss.score,
        "reference_score": loss.reference_score,
        "data": source.label if heldout is None else heldout.label,
        "is_right": loss.share <= config.budget,
    }


def make_config(
    checkpoint: Path,
    *,
    backends: tuple[str, ...] = (),
    threads: tuple[int, ...] | None = None,
    variants: tuple[str, ...] = (),
    data: Path | None = None,
    **options: Any,
) -> TuneConfig:
    """Return what is to be tried; empty ones stand for all that this machine has.

    Raises:
        ConfigError: There is no such backend or variant, a number is not usable, or the checkpoint is no fp32 bundle.
        CheckpointError: The checkpoint has no weights.
    """
    for name in backends:
        get_backend(name)
    if unknown := [name for name in variants if name not in VARIANTS]:
        raise ConfigError(f"unknown variant {unknown[0]!r}; there are {list_known(unknown[0], VARIANTS)}")
    cores = os.cpu_count() or 1
    counts = tuple(sorted({1, cores})) if threads is None else threads
    for count in counts:
        check_count("threads", count, MAX_THREADS)
    if min(options.get("seq_lens", (1,)), default=0) < 1 or options.get("batch", 1) < 1:
        raise ConfigError("seq_lens and batch are to be 1 or more, and one length at least")
    return TuneConfig(
        str(checkpoint.resolve()),
        _identify(checkpoint),
        backends=backends or _list_backends(),
        threads=counts,
        variants=variants or VARIANTS,
        data=None if data is None else str(data.resolve()),
        **options,
    )


def _identify(checkpoint: Path) -> str:
    """Return a hash that tells a checkpoint or bundle from others."""
    from flash_export.bundle.bundle import MANIFEST_FILE, Bundle
    from flash_export.files import hash_file
    from flash_export.models.tensor_files import find_weights_file

    if (checkpoint / MANIFEST_FILE).is_file():
        precision = Bundle.open(checkpoint).get_graph().precision
        if precision != FP32:
            raise ConfigError(f"{checkpoint} is {precision}; give the fp32 bundle that it was made from")
        return hash_file(checkpoint / MANIFEST_FILE)
    if not checkpoint.exists():
        raise CheckpointError(f"{checkpoint} does not exist; give a checkpoint folder or a bundle")
    if not (checkpoint / CONFIG_FILE).is_file():
        raise ConfigError(
            f"{checkpoint} is no checkpoint folder with {CONFIG_FILE}; make a bundle of it with 'flash-export onnx'"
        )
    return hash_file(find_weights_file(checkpoint))


def _list_backends() -> tuple[str, ...]:
    """Return the backends that read graphs and can be opened on this machine."""
    from importlib.util import find_spec

    import torch

    names = [ORT_CPU]
    if find_spec("openvino") is not None:
        names.append("openvino")
    if torch.cuda.is_available():
        names.append("ort-cuda")
    return tuple(names)
