"""What tuning found: every way with what it costs and loses, and why all but one were dropped."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flash_export.formatting import format_bytes, format_known
from flash_export.report.document import (
    Axis,
    Document,
    Note,
    Notes,
    Plot,
    Plots,
    Point,
    Section,
    Series,
    number,
    tabulate,
    text,
)
from flash_export.runtime.backends import get_backend
from flash_export.strict_json import format_json
from flash_export.study.tasks import Task
from flash_export.study.tuning import FP32, find_reason_against
from flash_export.typed_json import build
from flash_export.validators.environment import describe_machine
from flash_export.validators.latency import Percentiles
from flash_export.validators.report.rows import format_median

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from flash_export.report.document import Table
    from flash_export.study.schedule import Found
    from flash_export.study.tuning import TuneConfig


@dataclass(frozen=True)
class Way:
    """A precision or scheme on a backend, with a number of threads.

    Attributes:
        variant: ``fp32``, ``fp16``, ``bf16``, a scheme, or ``int8-bf16``.
        backend: Where it runs.
        threads: Of one operator; None: what the backend chooses.
        bytes: The graph with its weights.
        loss: What it loses, as a fraction of the score.
        latency_ms: Of a run, by length.
        memory_bytes: At the longest length.
        speedup: How many times as fast as fp32 on the first backend, the geometric mean over the lengths.
        reason: Why it was dropped; None of the one that was chosen.
    """

    variant: str
    backend: str
    threads: int | None
    bytes: int | None = None
    loss: float | None = None
    latency_ms: dict[str, Percentiles] | None = None
    memory_bytes: int | None = None
    speedup: float | None = None
    reason: str | None = None

    @property
    def name(self) -> str:
        """What reports call it."""
        threads = "" if self.threads is None else f", {self.threads} thread{'' if self.threads == 1 else 's'}"
        return f"{self.variant} on {self.backend}{threads}"

    def compute_mean_ms(self) -> float | None:
        """Return the geometric mean of the medians; None if one is missing."""
        times = [one.p50 for one in (self.latency_ms or {}).values()]
        return math.exp(sum(map(math.log, times)) / len(times)) if times else None


@dataclass(frozen=True)
class Tuning:
    """What tuning found.

    Attributes:
        checkpoint: What was tuned.
        budget: Largest loss that is accepted.
        seq_lens: Lengths that were timed.
        data: What the loss was measured on.
        ways: Every way that was looked at.
        best: The one that was chosen; None: there is none.
        environment: Where.
    """

    checkpoint: str
    budget: float
    seq_lens: tuple[int, ...]
    data: str | None
    ways: tuple[Way, ...]
    best: Way | None
    environment: dict[str, str | int]

    def to_json(self) -> str:
        """Return strict JSON."""
        return format_json(self)


def collect_tuning(config: TuneConfig, found: Mapping[str, Found]) -> Tuning:
    """Put together what tasks found, and choose the fastest way within the budget."""
    ways = [
        way
        for variant in config.variants
        for backend in config.backends
        for way in _list_ways(config, found, variant, backend)
    ]
    first = next((way for way in ways if way.variant == FP32 and way.latency_ms), None)
    timed = [way for way in ways if way.reason is None]
    best = min(timed, key=lambda way: way.compute_mean_ms() or math.inf, default=None)
    finished = []
    for way in ways:
        mean = way.compute_mean_ms()
        speedup = None if first is None or mean is None else (first.compute_mean_ms() or math.nan) / mean
        reason = way.reason
        if reason is None and way is not best and best is not None and mean is not None:
            reason = f"takes {mean / (best.compute_mean_ms() or math.nan):.2f} times as long as {best.name}"
        finished.append(replace(way, speedup=speedup, reason=reason))
    judged = [one.value["data"] for name, one in found.items() if name.startswith("judge~") and one.value is not None]
    return Tuning(
        config.checkpoint,
        config.budget,
        config.seq_lens,
        judged[0] if judged else None,
        tuple(finished),
        None if best is None else finished[ways.index(best)],
        describe_machine(None),
    )


def _list_ways(config: TuneConfig, found: Mapping[str, Found], variant: str, backend: str) -> Iterator[Way]:
    """Yield a way for each number of threads; one alone where nothing was timed."""
    against = find_reason_against(variant, backend)
    if against is not None:
        yield Way(variant, backend, None, reason=against)
        return
    made = found[Task("make", variant).name]
    check, judged = found[Task("validate", variant, backend).name], found[Task("judge", variant, backend).name]
    size = None if made.value is None else made.value["bytes"]
    loss = None if judged.value is None else judged.value["loss"]
    reason = made.reason or check.reason or judged.reason
    if reason is None and check.value is not None and not check.value["is_right"]:
        reason = f"fails validation: {check.value['reason'] or 'not all checks passed'}"
    if reason is None and loss is not None and not loss <= config.budget:
        reason = f"loses {loss:.2%}, the budget is {config.budget:.2%}"
    if reason is not None:
        yield Way(variant, backend, None, size, loss, reason=reason)
        return
    for threads in config.threads if get_backend(backend).device == "cpu" else (0,):
        tasks = {seq_len: found[Task("time", variant, backend, seq_len, threads).name] for seq_len in config.seq_lens}
        reasons = (one.reason if one.value is None else one.value["reason"] for one in tasks.values())
        failed = next(filter(None, reasons), None)
        times = {
            str(seq_len): build(one.value["latency_ms"], Percentiles)
            for seq_len, one in tasks.items()
            if one.value is not None and one.value["latency_ms"] is not None
        }
        last = tasks[config.seq_lens[-1]].value
        memory = None if last is None else last["memory_bytes"]
        yield Way(variant, backend, threads or None, size, loss, times, memory, reason=failed)


def describe_tuning(tuning: Tuning, folder: str) -> Document:
    """Return the report."""
    best = tuning.best
    if best is None:
        lead = "No way passed validation within the budget."
    else:
        faster = "" if best.speedup is None else f", {best.speedup:.2f} times as fast as fp32"
        loss = "" if best.loss is None else f", and loses {max(best.loss, 0.0):.2%}"
        lead = f"{best.name} is the fastest within {tuning.budget:.2%}{faster}{loss}."
    return Document(
        subject=f"Tuned: {tuning.checkpoint}",
        command="flash-export tune",
        headline=f"{len(tuning.ways)} ways to run one model",
        lead=lead,
        sections=(
            Section("", Plots(tuple(filter(None, [_plot(tuning)]))), views=("page",)),
            Section(
                "Every way", _tabulate(tuning), f"Loss on {tuning.data or 'nothing'}, against the model in float64."
            ),
            Section("Why not", Notes(tuple(Note(way.reason, who=way.name) for way in tuning.ways if way.reason))),
        ),
        environment=tuple((name, str(value)) for name, value in tuning.environment.items()),
    )


def _plot(tuning: Tuning) -> Plot | None:
    """Plot loss against time."""
    points = [
        Point(mean, 100 * max(way.loss, 0.0), title=f"{way.name}: {mean:.3g} ms, loses {way.loss:.3%}", label=way.name)
        for way in tuning.ways
        if way.loss is not None and (mean := way.compute_mean_ms()) is not None
    ]
    if not points:
        return None
    lens = " and ".join(f"{seq_len:,}" for seq_len in tuning.seq_lens)
    return Plot(
        "Loss against time",
        f"Lower is better, and so is further left. Time is the geometric mean over {lens}.",
        Axis("ms a run", "linear"),
        Axis("loss, per cent", "linear"),
        (Series("ways within the budget", "s0", points=tuple(points)),),
    )


def _tabulate(tuning: Tuning) -> Table:
    return tabulate(
        tuning.ways,
        [
            (text("precision"), lambda way: way.variant),
            (text("backend"), lambda way: way.backend),
            (number("threads"), lambda way: format_known(str, way.threads)),
            (number("size"), lambda way: format_known(format_bytes, way.bytes)),
            (number("loss"), lambda way: format_known("{:.3%}".format, way.loss)),
            *(
                (
                    number(f"{seq_len:,}"),
                    lambda way, seq_len=seq_len: format_median((way.latency_ms or {}).get(str(seq_len))),
                )
                for seq_len in tuning.seq_lens
            ),
            (number("times as fast"), lambda way: format_known("{:.2f}".format, way.speedup)),
            (text("chosen"), lambda way: "yes" if way == tuning.best else None),
        ],
    )
