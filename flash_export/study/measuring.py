"""What a study and a tuning measure of a bundle, as plain JSON: whether it is right, and what it costs."""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flash_export.bundle.bundle import Bundle
from flash_export.data.sources import RandomSource
from flash_export.runtime.backends import find_target
from flash_export.validators.footprint import FootprintRequest, measure_footprint
from flash_export.validators.lengths import Cell
from flash_export.validators.report.rows import compute_noise_multiple
from flash_export.validators.trade_off.candidates import Candidate
from flash_export.validators.trade_off.speed import time_forward
from flash_export.validators.validate import validate_bundle
from flash_export.validators.validation_options import ValidationOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from flash_export.study.tasks import Task
    from flash_export.validators.trade_off.results import Timing

FOOTPRINT_S = 60.0


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
    options = ValidationOptions(
        plan=plan, max_seq_len=max_seq_len, backends=(backend,), threads=threads, latency_budget_s=0.0
    )
    report = validate_bundle(Bundle.open(path), options, lambda done, total, _: progress(done / total))
    counts = {status: sum(row.status == status for row in report.rows) for status in ("passed", "failed", "skipped")}
    reasons = [row.reason for row in report.rows if row.status != "passed" and row.reason]
    multiples = [multiple for row in report.rows if (multiple := compute_noise_multiple(row)) is not None]
    return {
        **counts,
        "is_right": report.passed and not counts["skipped"],
        "largest_multiple": max(multiples, default=None),
        "reason": reasons[0] if reasons else None,
        "longest": max((row.seq_len or 0 for row in report.rows if row.status == "passed"), default=0),
    }


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
    latency = timings[best].latency_ms
    return {
        "form": candidates[best].name,
        "reason": timings[best].reason,
        "latency_ms": None if latency is None else asdict(latency),
        "memory_bytes": footprint.total_bytes,
    }


def _get_median(timing: Timing) -> float:
    return math.inf if timing.latency_ms is None else timing.latency_ms.p50
