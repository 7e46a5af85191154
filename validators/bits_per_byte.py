"""Bits per byte on the held-out text: what an error means for the model's own task."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from flash_export.validators.cells import describe_exception
from flash_export.validators.plan import Cell, CellInputs, get_axis
from flash_export.validators.results import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float

    from flash_export.heldout import Heldout
    from flash_export.manifest import GraphSpec
    from flash_export.runtime.runner import Runner
    from flash_export.validators.accuracy import Limit
    from flash_export.validators.cells import OpenBackend


def compare_bits_per_byte(
    heldout: Heldout, graph: GraphSpec, reference: Runner, backends: Sequence[OpenBackend]
) -> tuple[dict[str, float] | None, list[Row]]:
    """Return bits per byte of the eager model and of each backend, and a row for each that gave none."""
    cell = Cell(1, heldout.tokens.shape[1], masked=False)
    eager = measure_bits_per_byte(heldout, lambda inputs: reference.run({"input_ids": inputs.input_ids})["logits"])
    if not math.isfinite(eager):
        return None, [_make_row(opened, cell, "the eager model's bits are not finite") for opened in backends]
    bits, rows = {"eager": eager}, []
    for opened in backends:
        value = _measure_backend(heldout, graph, opened, cell)
        if isinstance(value, Row):
            rows.append(value)
        else:
            bits[opened.backend.name] = value
            if reason := _describe_excess(value / eager - 1, opened.limit):
                rows.append(_make_row(opened, cell, reason))
    return bits, rows


def measure_bits_per_byte(heldout: Heldout, predict: Callable[[CellInputs], np.ndarray]) -> float:
    """Return the mean of ``-log2 p(byte)`` over the predicted bytes.

    Args:
        heldout: The windows.
        predict: Logits ``(1, seq, vocab)`` of one window.
    """
    total = 0.0
    for window, seen in enumerate(heldout.inputs):
        logits = predict(CellInputs(seen[None], np.array([len(seen)])))[0]
        total += sum_window_bits(heldout, window, logits)
    return total / int(heldout.targets.sum())


def sum_window_bits(heldout: Heldout, window: int, logits: Float[np.ndarray, "seq vocab"]) -> float:
    """Return the sum of ``-log2 p(byte)`` over the predicted bytes of one window."""
    predictions = logits[heldout.find_predictors(window)].astype(np.float64)
    return _sum_bits(predictions, heldout.tokens[window, heldout.find_targets(window)])


def _measure_backend(heldout: Heldout, graph: GraphSpec, opened: OpenBackend, cell: Cell) -> float | Row:
    misfit = opened.backend.describe_misfit(cell)
    if misfit or cell.seq_len not in get_axis(graph, "seq"):
        reason = misfit or f"windows of {cell.seq_len} are outside of the graph's range"
        return replace(_make_row(opened, cell, f"not read, {reason}"), status="skipped")
    try:
        value = measure_bits_per_byte(heldout, opened.run)
    except Exception as error:
        return _make_row(opened, cell, describe_exception(error))
    return value if math.isfinite(value) else _make_row(opened, cell, "the bits per byte are not finite")


def _describe_excess(change: float, limit: Limit) -> str | None:
    """Say that a backend needs too many bits, or None when it does not; fewer than the eager model is no fault."""
    if limit.bits_change is None or change <= limit.bits_change:
        return None
    return f"it needs {change:.2%} more bits than the eager model, accepted are {limit.bits_change:.2%}"


def _make_row(opened: OpenBackend, cell: Cell, reason: str) -> Row:
    backend = opened.backend
    return Row(backend.name, backend.graph, cell.batch, cell.seq_len, False, "failed", f"held-out text: {reason}")


def _sum_bits(logits: np.ndarray, tokens: np.ndarray) -> float:
    top = logits.max(axis=-1, keepdims=True)
    log_total = np.log(np.exp(logits - top).sum(axis=-1)) + top[:, 0]
    chosen = np.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return float(((log_total - chosen) / np.log(2)).sum())
