"""The score on held-out data, such as bits per byte: what an error means for what the model is there for."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from flash_export.tasks.registry import get_task
from flash_export.validators.lengths import RECORDED, Cell
from flash_export.validators.results import EAGER, HELDOUT_SCORE, HeldoutScores, Row
from flash_export.validators.shape_checks import describe_exception

if TYPE_CHECKING:
    from collections.abc import Callable

    from flash_export.bundle.manifest import GraphSpec
    from flash_export.data.batch import Batch, Outputs
    from flash_export.data.heldout import Heldout
    from flash_export.interface import Interface
    from flash_export.limits import Limit
    from flash_export.runtime.runner import Runner
    from flash_export.tasks.base import Measure
    from flash_export.validators.shape_checks import OpenBackend


def compare_scores(
    heldout: Heldout, interface: Interface, graph: GraphSpec, reference: Runner, backends: tuple[OpenBackend, ...]
) -> tuple[HeldoutScores | None, list[Row]]:
    """Return the scores of the eager model and of each backend, and a row for each backend that gave none.

    Without anything that should be predicted in the data, there is no score and no row.
    """
    if all(sample.target is None for sample in heldout.samples):
        return None, []
    measure = get_task(interface.task).describe_score(interface)
    cell = Cell(1, heldout.seq_len, masked=False, inputs=RECORDED)
    eager = measure_score(heldout, interface, lambda batch: reference.run(batch.to_model_inputs(masked=False)))
    if not math.isfinite(eager):
        return None, [
            _make_row(opened, cell, f"the eager model's {measure.label} are not finite") for opened in backends
        ]
    values, rows = {EAGER: eager}, []
    for opened in backends:
        value = _measure_backend(heldout, interface, graph, opened, cell, measure)
        if isinstance(value, Row):
            rows.append(value)
        else:
            values[opened.backend.name] = value
            if reason := _describe_excess(HeldoutScores(measure, values), opened.backend.name, opened.limit):
                rows.append(_make_row(opened, cell, reason))
    return HeldoutScores(measure, values), rows


def measure_score(heldout: Heldout, interface: Interface, predict: Callable[[Batch], Outputs]) -> float:
    """Return the mean score a prediction over all samples that have a target."""
    task = get_task(interface.task)
    scores = (task.score(interface, predict(one.batch), one) for one in heldout.samples if one.target is not None)
    first, *rest = (score for score in scores if score is not None)
    return sum(rest, start=first).mean


def _measure_backend(
    heldout: Heldout, interface: Interface, graph: GraphSpec, opened: OpenBackend, cell: Cell, measure: Measure
) -> float | Row:
    misfit = opened.backend.describe_misfit(cell)
    if misfit or cell.seq_len not in graph.axes["seq"] or cell.batch not in graph.axes["batch"]:
        reason = misfit or f"samples of {cell} are outside of the graph's range"
        return replace(_make_row(opened, cell, f"not read, {reason}"), status="skipped")
    try:
        value = measure_score(heldout, interface, opened.run)
    except Exception as error:
        return _make_row(opened, cell, describe_exception(error))
    return value if math.isfinite(value) else _make_row(opened, cell, f"the {measure.label} are not finite")


def _describe_excess(scores: HeldoutScores, name: str, limit: Limit) -> str | None:
    """Say that a score is too much worse, or None when it is not; better than the eager model is no fault."""
    measure, loss = scores.measure, scores.compute_loss(name)
    if limit.score_change is None or loss <= limit.score_change:
        return None
    value, eager = (measure.format(scores.values[one]) for one in (name, EAGER))
    worse = f"{loss:.2%} worse than the eager model's {eager}"
    return f"{measure.label} {value}, {worse}; accepted are {limit.score_change:.2%}"


def _make_row(opened: OpenBackend, cell: Cell, reason: str) -> Row:
    backend = opened.backend
    row = Row(backend.name, backend.graph, cell.batch, cell.seq_len, False, "failed", f"held-out data: {reason}")
    return replace(row, inputs=cell.inputs, name=HELDOUT_SCORE)
