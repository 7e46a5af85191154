"""Checking one cell: the same inputs through the eager model and through every open backend."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from flash_export.errors import FlashExportError
from flash_export.validators.accuracy import compare_outputs
from flash_export.validators.latency import LatencyResult, measure_latency
from flash_export.validators.memory import describe_lack_of_memory
from flash_export.validators.plan import (
    build_cell_inputs,
    build_graph_inputs,
    build_noise_inputs,
    describe_default_omission,
)
from flash_export.validators.results import Row

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from flash_export.models.base import ModelConfig
    from flash_export.runtime.runner import Runner
    from flash_export.validators.accuracy import Limit
    from flash_export.validators.backends import Backend
    from flash_export.validators.plan import Cell, CellInputs
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

    def run(self, inputs: CellInputs) -> np.ndarray:
        """Return the first output."""
        return self.runner.run(build_graph_inputs(self.backend.inputs, inputs))[self.backend.outputs[0].name]


@dataclass(frozen=True)
class Expected:
    """What a cell is compared with.

    Attributes:
        logits: Of the reference, float64.
        eager: Of the eager model in the graph's precision.
        eager_s: Seconds that the latter took.
        other_noise: Error of the eager model on further inputs of a small cell's length, as a fraction of their scale.
    """

    logits: np.ndarray
    eager: np.ndarray
    eager_s: float
    other_noise: float

    @property
    def noise(self) -> float:
        """Error of the eager model, as a fraction of the output's scale."""
        return max(_compute_noise(self.logits, self.eager), self.other_noise)


@dataclass(frozen=True)
class CellChecker:
    """Compares backends with the reference, one cell at a time.

    Attributes:
        config: Config of the model.
        reference: The model in float64, which accuracy is measured against.
        eager: The model in the graph's precision, whose own error is the noise floor.
        budget_s: Time for measuring the latency of one cell; 0: do not measure it.
        is_default_plan: Whether the lengths are ours, so that the very expensive cells may be left out.
        text: Tokens of held-out text, for the cells that ask for it.
    """

    config: ModelConfig
    reference: Runner
    eager: Runner
    budget_s: float
    is_default_plan: bool
    text: np.ndarray | None = None

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
        inputs = build_cell_inputs(cell, int(self.config.to_dict()["vocab_size"]), self.text)
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
        inputs = build_cell_inputs(cell, int(self.config.to_dict()["vocab_size"]), self.text)
        return self._compute_expected(cell, inputs).noise

    def _compute_expected(self, cell: Cell, inputs: CellInputs) -> Expected:
        logits = self._run_model(self.reference, cell, inputs)
        start = time.perf_counter()
        eager = self._run_model(self.eager, cell, inputs)
        eager_s, other_noise = time.perf_counter() - start, 0.0
        if more := build_noise_inputs(cell, int(self.config.to_dict()["vocab_size"]), self.text):
            other_noise = _compute_noise(*(self._run_model(runner, *more) for runner in (self.reference, self.eager)))
        return Expected(logits, eager, eager_s, other_noise)

    def _run_model(self, runner: Runner, cell: Cell, inputs: CellInputs) -> np.ndarray:
        """Run the reference or the eager model.

        Where a model promises that padding changes nothing, a masked batch is compared with each of its rows alone,
        unpadded and unmasked. A model whose divisor counts the padding gets the same mask instead.
        """
        if not cell.masked:
            return _run_reference(runner, inputs.input_ids)
        if getattr(self.config, "mask_divisor", "valid") == "padded":
            return _run_reference(runner, inputs.input_ids, inputs.valid.astype(np.int64))
        expected: np.ndarray | None = None
        for row, length in enumerate(inputs.lengths):
            logits = _run_reference(runner, inputs.input_ids[row : row + 1, :length])
            if expected is None:
                expected = np.zeros((cell.batch, cell.seq_len, logits.shape[-1]), dtype=logits.dtype)
            expected[row, :length] = logits[0]
        assert expected is not None  # a cell has at least one row
        return expected

    def _check_backend(self, opened: OpenBackend, cell: Cell, inputs: CellInputs, expected: Expected) -> Row:
        try:
            return self._compare(opened, cell, inputs, expected)
        except Exception as error:  # whatever a backend raises, the other cells still have something to tell
            return make_row(opened.backend, cell, describe_exception(error), failed=True)

    def _compare(self, opened: OpenBackend, cell: Cell, inputs: CellInputs, expected: Expected) -> Row:
        start = time.perf_counter()
        actual = opened.run(inputs)
        backend_s = time.perf_counter() - start
        result = compare_outputs(
            expected.logits,
            expected.eager,
            actual,
            inputs.valid,
            opened.limit,
            dtype=opened.backend.outputs[0].dtype,
            other_noise=expected.other_noise,
        )
        del actual
        row = replace(
            make_row(opened.backend, cell, result.reason, failed=not result),
            **vars(result),
            status="passed" if result else "failed",
        )
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
            tokens_per_s=cell.tokens / latency.backend.p50 * 1e3,
        )

    def _measure(self, opened: OpenBackend, inputs: CellInputs, first: tuple[float, float]) -> LatencyResult:
        arrays = build_graph_inputs(opened.backend.inputs, inputs)
        compiled = opened.compiled
        is_slow = opened.eager is self.eager and sum(first) > _SLOW_PAIR_S
        return measure_latency(
            lambda: _run_reference(opened.eager, inputs.input_ids),
            lambda: opened.runner.run(arrays),
            run_compiled=None if compiled is None else lambda: _run_reference(compiled, inputs.input_ids),
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


def _compute_noise(expected: np.ndarray, eager: np.ndarray) -> float:
    """Return the largest error as a fraction of the scale; 0 where it cannot be told."""
    scale, error = float(np.abs(expected).max()), float(np.abs(expected - eager).max())
    return error / scale if scale and math.isfinite(error) else 0.0


def _run_reference(runner: Runner, input_ids: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    inputs = {"input_ids": input_ids}
    if mask is not None:
        inputs["attention_mask"] = mask
    return runner.run(inputs)["logits"]


def make_row(backend: Backend, cell: Cell, reason: str | None, *, failed: bool = False) -> Row:
    """Return a row that failed or was skipped."""
    status: Status = "failed" if failed else "skipped"
    return Row(backend.name, backend.graph, cell.batch, cell.seq_len, cell.masked, status, reason, inputs=cell.inputs)
