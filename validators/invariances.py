"""What must hold of any backend whatever the model computes: two of its own runs are compared, not a reference.

Wrong answers of compilers have looked like this: equal rows of a batch that differ, results that depend on who else is
in the batch, dynamic shapes that give other numbers than static ones (TensorRT issues 4813, 3744, 4250).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from flash_export.validators.cells import describe_exception, make_row
from flash_export.validators.plan import Cell, CellInputs, build_cell_inputs, get_axis, get_probe_chunk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float

    from flash_export.manifest import GraphSpec
    from flash_export.models.base import ModelConfig
    from flash_export.runtime.streaming import StreamingRunner
    from flash_export.validators.accuracy import Limit
    from flash_export.validators.backends import Backend
    from flash_export.validators.cells import OpenBackend
    from flash_export.validators.results import Row

    Pair = tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]

_ROWS = 3


@dataclass(frozen=True)
class Invariance:
    """One property, and how two runs show it.

    Attributes:
        name: Name in reports.
        claim: What must hold, as the end of a sentence.
        compute: Returns what two runs say of the same thing.
        applies: Whether a model and a backend promise it.
        batch: Rows that it takes, as far as the graph's range allows.
        is_exact: Whether not even the rounding may differ.
    """

    name: str
    claim: str
    compute: Callable[[OpenBackend, CellInputs], Pair]
    applies: Callable[[ModelConfig, Backend], bool]
    batch: int = 1
    is_exact: bool = False


def check_invariances(
    opened: OpenBackend, config: ModelConfig, graph: GraphSpec, limit: Limit, measure_noise: Callable[[Cell], float]
) -> list[Row]:
    """Return one row an invariance that the model promises.

    Args:
        opened: The backend.
        config: Config of the model.
        graph: Contract of the forward graph.
        limit: How far two computations of the same numbers may differ.
        measure_noise: Error of the eager model at a shape, as a fraction of the output's scale.
    """
    batches = get_axis(graph, "batch")
    rows = []
    for invariance in INVARIANCES:
        if not invariance.applies(config, opened.backend):
            continue
        batch = min(max(invariance.batch, batches.min), batches.max)
        cell = Cell(batch, choose_length(graph, config), masked=False)
        if batch == 1 < invariance.batch:
            row = make_row(opened.backend, cell, "it takes several rows, and the graph takes one")
        else:
            row = _check(invariance, opened, config, cell, limit, measure_noise)
        rows.append(replace(row, check=invariance.name))
    return rows


def choose_length(graph: GraphSpec, config: ModelConfig) -> int:
    """Return two chunks and a half: a whole chunk before, and padding in the last."""
    axis, chunk = get_axis(graph, "seq"), get_probe_chunk(config)
    return max(min(2 * chunk + chunk // 2 + 1, axis.max), axis.min)


def _check(
    invariance: Invariance,
    opened: OpenBackend,
    config: ModelConfig,
    cell: Cell,
    limit: Limit,
    measure_noise: Callable[[Cell], float],
) -> Row:
    if misfit := opened.backend.describe_misfit(cell):
        return make_row(opened.backend, cell, misfit)
    try:
        inputs = build_cell_inputs(cell, int(config.to_dict()["vocab_size"]))
        left, right = (side.astype(np.float64) for side in invariance.compute(opened, inputs))
    except Exception as error:  # whatever a backend raises, the other checks still have something to tell
        return make_row(opened.backend, cell, describe_exception(error), failed=True)
    scale, difference = float(np.abs(left).max()), float(np.abs(left - right).max())
    accepted = 0.0 if invariance.is_exact else limit.compute_own_limit(scale, measure_noise(cell) * scale)
    if not np.isfinite(difference):
        return make_row(opened.backend, cell, "a run gives NaN or infinity", failed=True)
    passed = difference <= accepted
    reason = None if passed else f"{invariance.claim}; it differs by {difference:.3g}, accepted are {accepted:.3g}"
    return replace(
        make_row(opened.backend, cell, reason, failed=not passed),
        status="passed" if passed else "failed",
        max_abs_error=difference,
        max_rel_error=difference / scale if scale else None,
        tolerance=accepted,
    )


def _repeat(opened: OpenBackend, inputs: CellInputs) -> Pair:
    return opened.run(inputs), opened.run(inputs)


def _compare_equal_rows(opened: OpenBackend, inputs: CellInputs) -> Pair:
    logits = opened.run(_take_rows(inputs, [0] * len(inputs.lengths)))
    return np.broadcast_to(logits[:1], logits.shape), logits


def _compare_row_alone(opened: OpenBackend, inputs: CellInputs) -> Pair:
    """Run each row of a batch by itself: as a batch of one row, or of its copies where one is too few."""
    is_fixed = isinstance(opened.backend.inputs[0].shape[0], int)
    one = Cell(1, inputs.input_ids.shape[1], masked=False)
    copies = len(inputs.lengths) if is_fixed or opened.backend.describe_misfit(one) else 1
    alone = [opened.run(_take_rows(inputs, [row] * copies))[:1] for row in range(len(inputs.lengths))]
    return np.concatenate(alone), opened.run(inputs)


def _change_future(opened: OpenBackend, inputs: CellInputs) -> Pair:
    """Replace all tokens from the middle on, and compare what comes before."""
    middle = inputs.input_ids.shape[1] // 2
    changed = inputs.input_ids.copy()
    changed[:, middle:] = np.roll(changed[:, middle:], 1, axis=1)
    other = opened.run(CellInputs(changed, inputs.lengths))
    return opened.run(inputs)[:, :middle], other[:, :middle]


def _pad(opened: OpenBackend, inputs: CellInputs) -> Pair:
    """Cut the text in the middle of a chunk, and compare it with the same text whose rest is masked."""
    length = inputs.input_ids.shape[1] // 2 + 1
    alone = opened.run(CellInputs(inputs.input_ids[:, :length], np.full_like(inputs.lengths, length)))
    padded = opened.run(CellInputs(inputs.input_ids, np.full_like(inputs.lengths, length)))
    return alone, padded[:, :length]


def _fix_shape(opened: OpenBackend, inputs: CellInputs) -> Pair:
    batch, seq_len = inputs.input_ids.shape
    open_static = opened.backend.open_static
    assert open_static is not None  # see _can_fix_shape
    with open_static({"batch": batch, "seq": seq_len}) as runner:
        static = replace(opened, runner=runner).run(inputs)
    return opened.run(inputs), static


def _reload_state(opened: OpenBackend, inputs: CellInputs) -> Pair:
    """Read half of the text, and the rest once with the state at hand and once with a saved and loaded copy of it."""
    from flash_export.runtime.generate import Generator

    runner, reload_state = cast("StreamingRunner", opened.runner), opened.backend.reload_state
    assert reload_state is not None  # see _carries_state
    middle = inputs.input_ids.shape[1] // 2
    generator = Generator(runner.pair)
    _, state = generator.prefill(list(inputs.input_ids[:, :middle]))
    rest = list(inputs.input_ids[:, middle:])
    return generator.prefill(rest, state)[0], generator.prefill(rest, reload_state(state))[0]


def _take_rows(inputs: CellInputs, rows: Sequence[int]) -> CellInputs:
    return CellInputs(inputs.input_ids[rows], inputs.lengths[rows])


def _always(config: ModelConfig, backend: Backend) -> bool:
    return True


def _is_causal(config: ModelConfig, backend: Backend) -> bool:
    # FLASH-Quad divides by the length of the whole text, but a text of the same length has the same divisor.
    return bool(config.to_dict().get("causal"))


def _takes_mask(config: ModelConfig, backend: Backend) -> bool:
    promises = config.to_dict().get("mask_divisor") != "padded"
    return promises and any(spec.name == "attention_mask" for spec in backend.inputs)


def _can_fix_shape(config: ModelConfig, backend: Backend) -> bool:
    return backend.open_static is not None


def _carries_state(config: ModelConfig, backend: Backend) -> bool:
    return backend.reload_state is not None


INVARIANCES = (
    Invariance("repeat", "the same input twice must give the same bits", _repeat, _always, is_exact=True),
    Invariance("equal-rows", "equal rows of a batch must give equal results", _compare_equal_rows, _always, _ROWS),
    Invariance("row-alone", "a row must give the same alone as in a batch", _compare_row_alone, _always, _ROWS),
    Invariance("future", "a token must not see later ones", _change_future, _is_causal),
    Invariance("padding", "masked tokens on the right must change nothing", _pad, _takes_mask),
    Invariance(
        "saved-state", "a saved and loaded state must go on alike", _reload_state, _carries_state, is_exact=True
    ),
    Invariance("static-shape", "a session of one fixed shape must give the same", _fix_shape, _can_fix_shape),
)
