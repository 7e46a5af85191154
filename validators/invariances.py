"""What must hold of any backend whatever the model computes: two of its own runs are compared, not a reference.

Wrong answers of compilers have looked like this: equal rows of a batch that differ, results that depend on who else is
in the batch, dynamic shapes that give other numbers than static ones (TensorRT issues 4813, 3744, 4250).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from flash_export.data.batch import cut_output, join_outputs
from flash_export.interface import BATCH, SEQ, Mask
from flash_export.validators.lengths import Cell, build_batch
from flash_export.validators.shape_checks import describe_exception, make_row

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from flash_export.bundle.manifest import GraphSpec
    from flash_export.data.batch import Batch, Outputs
    from flash_export.generation.streaming import StreamingRunner
    from flash_export.interface import Interface
    from flash_export.validators.backends import Backend
    from flash_export.validators.results import Row
    from flash_export.validators.shape_checks import CellChecker, OpenBackend

    Pair = tuple[Outputs, Outputs]

_ROWS = 3


@dataclass(frozen=True)
class Invariance:
    """One property, and how two runs show it.

    Attributes:
        name: Name in reports.
        claim: What must hold, as the end of a sentence.
        compute: Returns what two runs say of the same thing, given a batch and another of the same shape.
        applies: Whether a model and a backend promise it.
        batch: Rows that it takes, as far as the graph's range allows.
        is_exact: Whether not even the rounding may differ.
    """

    name: str
    claim: str
    compute: Callable[[OpenBackend, Batch, Batch], Pair]
    applies: Callable[[Interface, Backend], bool]
    batch: int = 1
    is_exact: bool = False


def check_invariances(
    opened: OpenBackend, checker: CellChecker, graph: GraphSpec, names: Collection[str] | None = None
) -> list[Row]:
    """Return one row an invariance that the model promises.

    Args:
        opened: The backend.
        checker: What has the inputs, of which random ones are used, and the eager model's own error on them.
        graph: Contract of the forward graph.
        names: Which invariances; None: all of them.
    """
    interface, batches = checker.interface, graph.axes[BATCH]
    rows = []
    for invariance in INVARIANCES:
        if not invariance.applies(interface, opened.backend) or (names is not None and invariance.name not in names):
            continue
        batch = min(max(invariance.batch, batches.min), batches.max)
        cell = Cell(batch, choose_length(graph, interface), masked=False)
        if batch == 1 < invariance.batch:
            row = make_row(opened.backend, cell, "it takes several rows, and the graph takes one")
        else:
            row = _check(invariance, opened, checker, cell)
        rows.append(replace(row, check=invariance.name, name=invariance.name))
    return rows


def choose_length(graph: GraphSpec, interface: Interface) -> int:
    """Return two chunks and a half: a whole chunk before, and padding in the last."""
    axis, chunk = graph.axes[SEQ], interface.chunk_size
    return max(min(2 * chunk + chunk // 2 + 1, axis.max), axis.min)


def _check(invariance: Invariance, opened: OpenBackend, checker: CellChecker, cell: Cell) -> Row:
    if misfit := opened.backend.describe_misfit(cell):
        return make_row(opened.backend, cell, misfit)
    inputs = build_batch(cell, checker.data)
    try:
        pair = invariance.compute(opened, inputs, build_batch(cell, checker.data, seed=1))
        worst = max((_measure_difference(name, pair) for name in pair[0]), key=lambda found: found.relative)
    except Exception as error:  # whatever a backend raises, the other checks still have something to tell
        return make_row(opened.backend, cell, describe_exception(error), failed=True)
    accepted = 0.0
    if not invariance.is_exact:
        accepted = opened.limit.compute_own_limit(worst.scale, checker.measure_noise(cell) * worst.scale)
    if not np.isfinite(worst.absolute):
        return make_row(opened.backend, cell, "a run gives NaN or infinity", failed=True)
    passed = worst.absolute <= accepted
    if not passed and checker.failures is not None:
        row = replace(make_row(opened.backend, cell, invariance.claim, failed=True), name=invariance.name)
        checker.failures.keep(row, inputs, *pair)
    claim = f"{invariance.claim}; it differs by {worst.absolute:.3g}, accepted are {accepted:.3g}"
    return replace(
        make_row(opened.backend, cell, None if passed else claim, failed=not passed),
        status="passed" if passed else "failed",
        max_abs_error=worst.absolute,
        max_rel_error=worst.absolute / worst.scale if worst.scale else None,
        tolerance=accepted,
        output=worst.output if len(pair[0]) > 1 else None,
    )


@dataclass(frozen=True)
class _Difference:
    """How far two runs are apart in one output."""

    output: str
    absolute: float
    scale: float

    @property
    def relative(self) -> float:
        """As a fraction of the scale; infinite for NaN."""
        relative = self.absolute / self.scale if self.scale else self.absolute
        return relative if np.isfinite(relative) else np.inf


def _measure_difference(name: str, pair: Pair) -> _Difference:
    left, right = (side[name].astype(np.float64) for side in pair)
    return _Difference(name, float(np.abs(left - right).max()), float(np.abs(left).max()))


def _repeat(opened: OpenBackend, inputs: Batch, other: Batch) -> Pair:
    return opened.run(inputs), opened.run(inputs)


def _compare_equal_rows(opened: OpenBackend, inputs: Batch, other: Batch) -> Pair:
    outputs = opened.run(inputs.take_rows([0] * inputs.size))
    return {name: np.broadcast_to(values[:1], values.shape) for name, values in outputs.items()}, outputs


def _compare_row_alone(opened: OpenBackend, inputs: Batch, other: Batch) -> Pair:
    """Run each row of a batch by itself: as a batch of one row, or of its copies where one is too few."""
    is_fixed = all(BATCH not in spec.shape for spec in opened.backend.inputs)
    one = Cell(1, inputs.seq_len, masked=False)
    copies = inputs.size if is_fixed or opened.backend.describe_misfit(one) else 1
    specs = inputs.interface.outputs
    runs = [opened.run(inputs.take_rows([row] * copies)) for row in range(inputs.size)]
    alone = [{spec.name: np.take(run[spec.name], [0], axis=spec.shape.index(BATCH)) for spec in specs} for run in runs]
    return join_outputs(specs, alone, inputs.seq_len), opened.run(inputs)


def _change_future(opened: OpenBackend, inputs: Batch, other: Batch) -> Pair:
    """Replace everything from the middle on, and compare what comes before."""
    middle = inputs.seq_len // 2
    changed = opened.run(inputs.replace_from(middle, other))
    return _cut(inputs, opened.run(inputs), middle), _cut(inputs, changed, middle)


def _pad(opened: OpenBackend, inputs: Batch, other: Batch) -> Pair:
    """Cut the sequence in the middle of a chunk, and compare it with the same one whose rest is masked."""
    length = max(inputs.seq_len // 2 + 1, inputs.interface.min_len)
    padded = opened.run(inputs.mask_from(length))
    return opened.run(inputs.cut(length)), _cut(inputs, padded, length)


def _cut(inputs: Batch, outputs: Outputs, length: int) -> Outputs:
    return {spec.name: cut_output(outputs[spec.name], spec, length) for spec in inputs.interface.outputs}


def _fix_shape(opened: OpenBackend, inputs: Batch, other: Batch) -> Pair:
    open_static = opened.backend.open_static
    assert open_static is not None  # see _can_fix_shape
    with open_static({BATCH: inputs.size, SEQ: inputs.seq_len}) as runner:
        static = replace(opened, runner=runner).run(inputs)
    return opened.run(inputs), static


def _reload_state(opened: OpenBackend, inputs: Batch, other: Batch) -> Pair:
    """Read half of the text, and the rest once with the state at hand and once with a saved and loaded copy of it."""
    from flash_export.generation.generate import Generator

    runner, reload_state = cast("StreamingRunner", opened.runner), opened.backend.reload_state
    assert reload_state is not None  # see _carries_state
    name = opened.backend.outputs[0].name
    (tokens,) = inputs.arrays.values()
    generator, middle = Generator(runner.runners), inputs.seq_len // 2
    _, state = generator.prefill(list(tokens[:, :middle]))
    rest = list(tokens[:, middle:])
    return {name: generator.prefill(rest, state)[0]}, {name: generator.prefill(rest, reload_state(state))[0]}


def _always(interface: Interface, backend: Backend) -> bool:
    return True


def _is_causal(interface: Interface, backend: Backend) -> bool:
    # FLASH-Quad divides by the length of the whole text, but a text of the same length has the same divisor.
    return interface.is_causal


def _takes_mask(interface: Interface, backend: Backend) -> bool:
    takes_it = any(isinstance(spec.content, Mask) for spec in backend.inputs)
    return interface.padding == "exact" and takes_it


def _can_fix_shape(interface: Interface, backend: Backend) -> bool:
    return backend.open_static is not None


def _carries_state(interface: Interface, backend: Backend) -> bool:
    return backend.reload_state is not None


INVARIANCES = (
    Invariance("repeat", "the same input twice must give the same bits", _repeat, _always, is_exact=True),
    Invariance("equal-rows", "equal rows of a batch must give equal results", _compare_equal_rows, _always, _ROWS),
    Invariance("row-alone", "a row must give the same alone as in a batch", _compare_row_alone, _always, _ROWS),
    Invariance("future", "nothing must depend on what comes later", _change_future, _is_causal),
    Invariance("padding", "what is masked on the right must change nothing", _pad, _takes_mask),
    Invariance(
        "saved-state", "a saved and loaded state must go on alike", _reload_state, _carries_state, is_exact=True
    ),
    Invariance("static-shape", "a session of one fixed shape must give the same", _fix_shape, _can_fix_shape),
)
