"""What a backend costs in a process of its own: opening it, its first calls, and the memory of its longest run.

The process of a validation cannot tell: it holds the eager model, and every session has already seen every shape. So
each backend is opened once more in a fresh process (:mod:`flash_export.validators.footprint_process`).
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from flash_export.isolation import run_module
from flash_export.typed_json import build
from flash_export.validators.backends import ONNX_PREFIX
from flash_export.validators.lengths import QUICK, Cell
from flash_export.validators.memory import describe_lack_of_memory

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from flash_export.bundle.manifest import GraphSpec
    from flash_export.models.base import ModelConfig
    from flash_export.validators.backends import Backend
    from flash_export.validators.lengths import Plan

PROCESS_MODULE = "flash_export.validators.footprint_process"
# Time for the runs of one backend; importing and opening come on top.
QUICK_BUDGET_S, BUDGET_S = 2.0, 60.0
_TIMEOUT_S = 600.0
_REASON_CHARACTERS = 300
# A sixteenth and a fourth of the longest length: far apart, so that a backend that prepares shapes has to.
_LENGTH_SHARES = 1 / 16, 1 / 4, 1


@dataclass(frozen=True)
class ShapeCost:
    """The first and the second call at a length that the process had not seen, in milliseconds."""

    seq_len: int
    first_ms: float
    second_ms: float


@dataclass(frozen=True)
class Footprint:
    """What one backend costs in a process that does nothing else.

    Attributes:
        backend: Name of the backend.
        reason: What is missing, and why; None when nothing is.
        open_ms: Opening the session: reading, optimising, allocating.
        session_bytes: Resident memory that opening it added.
        shapes: The lengths in the order in which they were run, with the smallest batch.
        first_call_ms: The very first call.
        shape_change_ms: How much longer the first call at a new length takes than the second, as the median over the
            lengths after the first; 0 where it takes no longer.
        peak_bytes: Resident memory beyond the open session at the longest length.
        peak_seq_len: That length.
    """

    backend: str
    reason: str | None = None
    open_ms: float | None = None
    session_bytes: int | None = None
    shapes: tuple[ShapeCost, ...] = ()
    first_call_ms: float | None = None
    shape_change_ms: float | None = None
    peak_bytes: int | None = None
    peak_seq_len: int | None = None

    @property
    def total_bytes(self) -> int | None:
        """What the open session and its longest run take; None if one is not known."""
        if self.session_bytes is None or self.peak_bytes is None:
            return None
        return self.session_bytes + self.peak_bytes


@dataclass(frozen=True)
class FootprintRequest:
    """What a fresh process is asked to measure.

    Attributes:
        bundle: Folder of the bundle.
        backend: Name of the backend.
        onnx_files: The graphs of other exporters, if the backend is one of them.
        threads: Threads of one operator on the CPU; None: what the backend chooses.
        batch: Sequences.
        seq_lens: Lengths, shortest first.
        budget_s: No length is begun that would not end within this time.
    """

    bundle: str
    backend: str
    onnx_files: tuple[str, ...]
    threads: int | None
    batch: int
    seq_lens: tuple[int, ...]
    budget_s: float


def plan_footprint(
    bundle: Path,
    backend: Backend,
    graph: GraphSpec,
    config: ModelConfig,
    plan: Plan,
    *,
    onnx_files: Sequence[Path] = (),
    threads: int | None = None,
) -> FootprintRequest:
    """Choose the lengths of a backend, out of those of the plan that it can take and that fit into memory."""
    batch = graph.axes["batch"].min
    cells = [Cell(batch, seq_len, masked=False) for seq_len in sorted(set(plan.seq_lens))]
    fitting = [
        cell.seq_len
        for cell in cells
        if not backend.describe_misfit(cell) and describe_lack_of_memory(config, cell) is None
    ]
    is_foreign = backend.name.startswith(ONNX_PREFIX)
    return FootprintRequest(
        os.path.abspath(bundle),
        backend.name,
        tuple(map(os.path.abspath, onnx_files)) if is_foreign else (),
        threads,
        batch,
        choose_lengths(fitting, config.interface.chunk_size),
        QUICK_BUDGET_S if plan.name == QUICK else BUDGET_S,
    )


def choose_lengths(seq_lens: Sequence[int], chunk_size: int) -> tuple[int, ...]:
    """Return up to three lengths, shortest first, the longest last, if possible none shorter than a chunk.

    >>> choose_lengths([1, 2, 64, 127, 257, 512, 1024, 4096], 128)
    (257, 1024, 4096)
    """
    wanted = [max(share * max(seq_lens), chunk_size) for share in _LENGTH_SHARES] if seq_lens else []
    return tuple(sorted({min(seq_lens, key=lambda length: abs(length - target)) for target in wanted}))


def measure_footprint(request: FootprintRequest, *, timeout_s: float = _TIMEOUT_S) -> Footprint:
    """Measure a backend in a fresh process; what goes wrong there becomes the reason."""
    if not request.seq_lens:
        return Footprint(request.backend, "not measured: the backend takes no length of the plan")
    untrusted = (request.bundle, *map(os.path.dirname, request.onnx_files))
    try:
        process = run_module(PROCESS_MODULE, json.dumps(asdict(request)), untrusted=untrusted, timeout_s=timeout_s)
    except subprocess.TimeoutExpired:
        return Footprint(request.backend, f"not measured: it took more than {timeout_s:g} s")
    if process.returncode:
        detail = (process.stderr.strip().splitlines() or ["no message"])[-1]
        return Footprint(
            request.backend,
            f"not measured: its process ended with exit code {process.returncode} ({detail[:_REASON_CHARACTERS]})",
        )
    return build(json.loads(process.stdout.splitlines()[-1]), Footprint)
