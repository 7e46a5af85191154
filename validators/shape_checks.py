"""Checking one cell: the same inputs through the eager model and through every open backend."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from flash_export.data.batch import join_outputs
from flash_export.errors import FlashExportError
from flash_export.validators.accuracy import compare_outputs
from flash_export.validators.latency import LatencyResult, measure_latency
from flash_export.validators.lengths import build_batch, build_noise_batch, describe_default_omission
from flash_export.validators.memory import describe_lack_of_memory
from flash_export.validators.results import Row

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from flash_export.data.batch import Batch, Outputs
    from flash_export.data.sources import Data
    from flash_export.interface import Interface
    from flash_export.limits import Limit
    from flash_export.models.base import ModelConfig
    from flash_export.runtime.runner import Runner
    from flash_export.validators.backends import Backend
    from flash_export.validators.failures import FailureFolder
    from flash_export.validators.lengths import Cell
    from flash_export.validators.results import Status

# A run this long is not noticeably shorter after a warm-up, so the run that was compared is timed too.
_SLOW_PAIR_S = 1.0
# Per sequence of the batch: a batch tells less about speed than the single sequence, and costs more.
_MAX_PAIR_S = 15.0
_REASON_CHARACTERS = 300


@dataclass(frozen=True)
class OpenBackend:
    """A backend, its runner and what it is held to.

    Attributes:
        eager: The eager model on the same kind of device, to be timed beside the backend.
        limit: How far it may be from the reference.
        compiled: The eager model under ``torch.compile``, to be timed too.
    """

    backend: Backend
    runner: Runner
    eager: Runner
    limit: Limit
    compiled: Runner | None = None

    def run(self, batch: Batch) -> Outputs:
        """Return the outputs, by name."""
        outputs = self.runner.run(batch.to_inputs(self.backend.inputs))
        return {spec.name: outputs[spec.name] for spec in self.backend.outputs}


@dataclass(frozen=True)
class Expected:
    """What a cell is compared with.

    Attributes:
        reference: What the reference returns, float64.
        eager: What the eager model in the graph's precision returns.
        eager_s: Seconds that the latter took.
        other_noise: Error of the eager model on further inputs of a small cell's length, as a fraction of their scale,
            by output; empty for a large one.
    """

    reference: Outputs
    eager: Outputs
    eager_s: float
    other_noise: Mapping[str, float]

    @property
    def noise(self) -> float:
        """Largest error of the eager model in any output, as a fraction of its scale."""
        return max(*_compute_noise(self.reference, self.eager).values(), *self.other_noise.values(), 0.0)


@dataclass(frozen=True)
class CellChecker:
    """Compares backends with the reference, one cell at a time.

    Attributes:
        config: Config of the model.
        reference: The model in float64, which accuracy is measured against.
        eager: The model in the graph's precision, whose own error is the noise floor.
        budget_s: Time for measuring the latency of one cell; 0: do not measure it.
        is_default_plan: Whether the lengths are ours, so that the very expensive cells may be left out.
        data: Where the inputs of cells come from.
        failures: Where the inputs and outputs of what fails are kept; None: nowhere.
        drawn_noise: Error of the eager model on what was drawn for small cells, which those of one length share.
    """

    config: ModelConfig
    reference: Runner
    eager: Runner
    budget_s: float
    is_default_plan: bool
    data: Data
    failures: FailureFolder | None = None
    drawn_noise: dict[Cell, dict[str, float]] = field(default_factory=dict)

    @property
    def interface(self) -> Interface:
        """What the model takes and gives."""
        return self.data.random.interface

    def check(self, cell: Cell, backends: Sequence[OpenBackend]) -> list[Row]:
        """Return one row a backend; what a backend raises makes its row fail."""
        omitted = describe_default_omission(cell) if self.is_default_plan else None
        skip = omitted or describe_lack_of_memory(self.config, cell)
        if skip:
            return [make_row(opened.backend, cell, skip) for opened in backends]

        rows = {
            opened.backend.name: make_row(opened.backend, cell, misfit)
            for opened in backends
            if (misfit := opened.backend.describe_misfit(cell))
        }
        inputs = build_batch(cell, self.data)
        remaining = [opened for opened in backends if opened.backend.name not in rows]
        if remaining:
            try:
                expected = self._compute_expected(cell, inputs)
            except Exception as error:
                reason = f"the eager model failed: {describe_exception(error)}"
                return [make_row(opened.backend, cell, reason, failed=True) for opened in backends]
        for opened in remaining:
            rows[opened.backend.name] = self._check_backend(opened, cell, inputs, expected)
        return [rows[opened.backend.name] for opened in backends]

    def measure_noise(self, cell: Cell) -> float:
        """Return the eager model's error at a shape, as a fraction of the output's scale."""
        return self._compute_expected(cell, build_batch(cell, self.data)).noise

    def _compute_expected(self, cell: Cell, inputs: Batch) -> Expected:
        reference = self._run_model(self.reference, cell, inputs)
        start = time.perf_counter()
        eager = self._run_model(self.eager, cell, inputs)
        return Expected(reference, eager, time.perf_counter() - start, self._measure_other_noise(cell))

    def _measure_other_noise(self, cell: Cell) -> dict[str, float]:
        more = build_noise_batch(cell, self.data)
        if more is None:
            return {}
        if more[0] not in self.drawn_noise:
            runs = (self._run_model(runner, *more) for runner in (self.reference, self.eager))
            self.drawn_noise[more[0]] = _compute_noise(*runs)
        return self.drawn_noise[more[0]]

    def _run_model(self, runner: Runner, cell: Cell, inputs: Batch) -> Outputs:
        """Run the reference or the eager model.

        Where a model promises that padding changes nothing, a masked batch is compared with each of its rows alone,
        unpadded and unmasked. A model whose divisor counts the padding gets the same mask instead.
        """
        if not cell.masked or self.interface.padding == "counted":
            return runner.run(inputs.to_model_inputs(masked=cell.masked))
        rows = [runner.run(row.to_model_inputs(masked=False)) for row in inputs.take_apart()]
        return join_outputs(self.interface.outputs, rows, cell.seq_len)

    def _check_backend(self, opened: OpenBackend, cell: Cell, inputs: Batch, expected: Expected) -> Row:
        try:
            return self._compare(opened, cell, inputs, expected)
        except Exception as error:  # whatever a backend raises, the other cells still have something to tell
            return make_row(opened.backend, cell, describe_exception(error), failed=True)

    def _compare(self, opened: OpenBackend, cell: Cell, inputs: Batch, expected: Expected) -> Row:
        start = time.perf_counter()
        actual = opened.run(inputs)
        backend_s = time.perf_counter() - start
        result = compare_outputs(
            self.interface,
            expected.reference,
            expected.eager,
            actual,
            inputs.valid,
            opened.limit,
            specs=opened.backend.outputs,
            other_noise=expected.other_noise,
        )
        row = replace(
            make_row(opened.backend, cell, result.reason, failed=not result),
            **vars(result),
            status="passed" if result else "failed",
        )
        if not result and self.failures is not None:
            self.failures.keep(row, inputs, expected.reference, actual)
        del actual
        # A masked batch costs what an unmasked one does, so time is spent on the latter alone.
        if not result or cell.masked or not (self.budget_s and cell.is_timed and opened.backend.is_timed):
            return row
        row = replace(row, first_latency_ms=backend_s * 1e3)
        if expected.eager_s + backend_s > _MAX_PAIR_S / cell.batch:
            note = f"latency not measured: one run of both takes {expected.eager_s + backend_s:.0f} s"
            return replace(row, reason=note)
        latency = self._measure(opened, inputs, (expected.eager_s, backend_s))
        return replace(
            row,
            latency_ms=latency.backend,
            eager_latency_ms=latency.eager,
            compiled_latency_ms=latency.compiled,
            speedup=latency.speedup,
            units_per_s=cell.positions / latency.backend.p50 * 1e3,
        )

    def _measure(self, opened: OpenBackend, inputs: Batch, first: tuple[float, float]) -> LatencyResult:
        arrays, plain = inputs.to_inputs(opened.backend.inputs), inputs.to_model_inputs(masked=False)
        compiled = opened.compiled
        is_slow = opened.eager is self.eager and sum(first) > _SLOW_PAIR_S
        return measure_latency(
            lambda: opened.eager.run(plain),
            lambda: opened.runner.run(arrays),
            run_compiled=None if compiled is None else lambda: compiled.run(plain),
            budget_s=self.budget_s,
            warmup=0 if is_slow else 1,
            first=first if is_slow else None,
        )


def describe_exception(error: Exception, folder: Path | None = None) -> str:
    """Return one line: our own errors speak for themselves, others are named.

    Args:
        error: What was raised.
        folder: Is left out of the paths in it.
    """
    text = " ".join(str(error).split())
    if folder is not None:
        text = text.replace(f"{folder}{os.sep}", "")
    if not isinstance(error, FlashExportError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= _REASON_CHARACTERS else f"{text[: _REASON_CHARACTERS - 3]}..."


def _compute_noise(expected: Outputs, eager: Outputs) -> dict[str, float]:
    """Return the largest error of each output as a fraction of its scale; 0 where it cannot be told."""
    found = {}
    for name, values in expected.items():
        scale, error = float(np.abs(values).max()), float(np.abs(values - eager[name]).max())
        found[name] = error / scale if scale and math.isfinite(error) else 0.0
    return found


def make_row(backend: Backend, cell: Cell, reason: str | None, *, failed: bool = False) -> Row:
    """Return a row that failed or was skipped."""
    status: Status = "failed" if failed else "skipped"
    shape = cell.batch, cell.seq_len, cell.masked
    return Row(backend.name, backend.graph, *shape, status, reason, inputs=cell.inputs, name=cell.name)
