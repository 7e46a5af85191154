"""What is validated, and how strictly: what a user chooses before anything is opened."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flash_export.config import MAX_THREADS, ORIGINAL, REFERENCE, check_count
from flash_export.errors import ConfigError
from flash_export.limits import ERROR_BUDGETS, QUANTIZATION_BUDGETS, Tolerance
from flash_export.suggest import describe_unknown
from flash_export.validators.invariances import INVARIANCES
from flash_export.validators.lengths import QUICK, Cell
from flash_export.validators.results import HELDOUT_SCORE
from flash_export.validators.symbolic_shapes import SYMBOLIC_SHAPE

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.quantization_record import QuantizationRecord
    from flash_export.limits import Limit

INVARIANCE_CHECKS = (*(one.name for one in INVARIANCES), SYMBOLIC_SHAPE)
# Checks that are no shape, by the names that a report has for them.
CHECKS = (*INVARIANCE_CHECKS, HELDOUT_SCORE)


@dataclass(frozen=True)
class ValidationOptions:
    """What is validated, and how strictly.

    Attributes:
        plan: ``quick``, ``full``, or a JSON file with lengths and batches.
        seq_lens: Lengths to check in place of the plan, and nothing else.
        max_seq_len: Longest length of ``quick`` or ``full``; None: the plan's own.
        batches: Batch sizes in place of the plan's.
        backends: Names of backends; empty: all that the bundle could run on.
        onnx_files: Graphs of other exporters to hold to the same standard.
        atol: Accepted absolute difference; with ``rtol``, in place of the error budget of the graph's precision.
        rtol: Accepted difference as a fraction of the output's scale.
        threads: Threads of one operator on the CPU; None: what each backend chooses.
        latency_budget_s: Time for measuring the latency of one cell; None: the plan's; 0: measure neither it nor the
            footprints.
        compiled: Whether the eager model is timed under ``torch.compile`` too.
        data: A file to read in place of the bundle's held-out data.
        checks: Names of checks, as a report has them, in place of the plan and of all else.
        failures: Folder to keep the inputs and outputs of what fails in; None: nowhere.
        against: ``reference``, our own model, or ``original``, that of the library that the weights come from, which is
            not timed.
        checkpoint: The checkpoint that the bundle was made of, for ``original``.
        original_python: Interpreter that has the library; None: the one that runs this.
    """

    plan: str = QUICK
    seq_lens: tuple[int, ...] | None = None
    max_seq_len: int | None = None
    batches: tuple[int, ...] | None = None
    backends: tuple[str, ...] = ()
    onnx_files: tuple[Path, ...] = ()
    atol: float | None = None
    rtol: float | None = None
    threads: int | None = None
    latency_budget_s: float | None = None
    compiled: bool = False
    data: Path | None = None
    checks: tuple[str, ...] = ()
    failures: Path | None = None
    against: str = REFERENCE
    checkpoint: Path | None = None
    original_python: Path | None = None

    def __post_init__(self) -> None:
        """Check what does not depend on the bundle."""
        if self.against not in (REFERENCE, ORIGINAL):
            raise ConfigError(f"against={self.against!r} is unknown; use {REFERENCE} or {ORIGINAL}")
        if (self.against == ORIGINAL) != (self.checkpoint is not None):
            raise ConfigError("against original and a checkpoint go together; give both, or neither")
        if self.against == REFERENCE and self.original_python is not None:
            raise ConfigError("original_python was given without against original; give both, or neither")
        if self.against == ORIGINAL and self.compiled:
            raise ConfigError("compiled and against original were both given; the original is not timed")
        if self.seq_lens is not None and self.max_seq_len is not None:
            raise ConfigError("seq_lens and max_seq_len were both given; max_seq_len limits the plans only")
        if self.checks and (self.seq_lens is not None or self.batches is not None):
            raise ConfigError(
                "checks and lengths or batches were both given; a check has a length and a batch of its own"
            )
        for name in self.checks:
            if name not in CHECKS and Cell.parse(name) is None:
                raise ConfigError(f"{describe_unknown('check', name, CHECKS)}, or a shape such as 3x300-masked")
        check_count("threads", self.threads, MAX_THREADS)
        for name, value in (("atol", self.atol), ("rtol", self.rtol)):
            if value is not None and not 0 <= value < math.inf:  # nothing could fail within an infinite one
                raise ConfigError(f"{name}={value} is not usable; use a finite number of at least 0")

    def list_arguments(self) -> tuple[str, ...]:
        """Return what of these a command line needs to do a single check again, beside its name and backend."""
        values = {
            "--data": self.data,
            "--atol": self.atol,
            "--rtol": self.rtol,
            "--threads": self.threads,
            "--against": None if self.against == REFERENCE else self.against,
            "--checkpoint": self.checkpoint,
            "--original-python": self.original_python,
        }
        return tuple(str(part) for name, value in values.items() if value is not None for part in (name, value))

    def get_limit(self, precision: str, quantization: QuantizationRecord | None = None) -> Limit:
        """Return what decides on a graph of this precision; a quantized one may lose what it was made to lose."""
        if self.atol is None and self.rtol is None:
            if quantization is not None:
                return replace(QUANTIZATION_BUDGETS[precision], score_change=quantization.budget)
            return ERROR_BUDGETS[precision]
        return Tolerance(self.atol or 0.0, self.rtol or 0.0)
