"""Which inputs are tried, and what one of them shows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from flash_export.errors import InputError
from flash_export.probes import LOGITS, QUANTITIES, Point
from flash_export.validators.bisect.budget import compute_limit
from flash_export.validators.bisect.deviation import build_region, describe_deviation, measure_deviation
from flash_export.validators.bisect.readings import GraphSource
from flash_export.validators.bisect.results import ProbeRow, Run
from flash_export.validators.cells import describe_exception
from flash_export.validators.memory import estimate_cell_bytes, read_free_bytes
from flash_export.validators.plan import Cell, build_cell_inputs, build_noise_inputs, get_axis, get_probe_chunk

if TYPE_CHECKING:
    import numpy as np

    from flash_export.manifest import GraphSpec
    from flash_export.models.base import ModelConfig
    from flash_export.probes import Probe
    from flash_export.validators.bisect.deviation import Deviation
    from flash_export.validators.bisect.readings import Source
    from flash_export.validators.bisect.results import ProbeStatus
    from flash_export.validators.plan import CellInputs

DEFAULT_BATCH = 2  # the second row may be padded while the first is not
FUSED = "right when the values before it are read, so that it is the runtime that joins them wrongly"


def plan_runs(graph: GraphSpec, config: ModelConfig, seq_len: int | None, batch: int | None) -> list[Cell]:
    """Return the runs in the order in which they are tried.

    The first length ends in the middle of the third chunk, so that every branch of the model has something to do. What
    goes wrong only without an earlier chunk, or only where nothing is padded, shows at 1 and at the chunk.
    """
    axis, chunk = get_axis(graph, "seq"), get_probe_chunk(config)
    lengths = [2 * chunk + chunk // 2 + 1, 1, chunk] if seq_len is None else [seq_len]
    lengths = list(dict.fromkeys(min(max(length, axis.min), axis.max) for length in lengths))
    batches = get_axis(graph, "batch")
    size = min(max(DEFAULT_BATCH, batches.min), batches.max) if batch is None else batch
    masks = (False, True) if graph.has_mask else (False,)
    return [Cell(size, length, masked) for length in lengths for masked in masks if not masked or size * length > 1]


def check_memory(config: ModelConfig, cell: Cell) -> None:
    """Refuse a run whose probes would not fit in half of the free memory.

    Raises:
        InputError: They would not.
    """
    depth = int(config.to_dict()["depth"])
    # Four copies in fp32, the reference's being as large as two, of about half of what is estimated for a block.
    needed, free = 2 * depth * estimate_cell_bytes(config, cell), read_free_bytes()
    if needed > free // 2:
        raise InputError(
            f"seq_len={cell.seq_len} with batch={cell.batch} needs about {needed / 2**30:.1f} GiB for what is read, "
            f"half of the free memory is {free / 2**31:.1f} GiB; use a smaller --seq-len"
        )


def compare_run(
    cell: Cell,
    config: ModelConfig,
    probes: tuple[Probe, ...],
    sources: tuple[Source, Source, Source | None],
    precision: str,
) -> Run:
    """Compare a graph with the reference at every probe.

    Args:
        cell: Shape of the input.
        config: Config of the model.
        probes: What the graph can be read at.
        sources: The reference, the graph, and the eager model that tells what rounding does, if there is one.
        precision: Precision of the graph.
    """
    vocab_size = int(config.to_dict()["vocab_size"])
    inputs = build_cell_inputs(cell, vocab_size)
    reference, graph, eager = sources
    try:
        actual = graph.read(cell, inputs)
    except Exception as error:  # whatever the runtime raises is what is wrong with the graph
        return Run(cell.batch, cell.seq_len, cell.masked, (), describe_exception(error))
    noise = _Noise(reference, eager, cell, inputs, vocab_size) if eager else None
    expected, rows = reference.read(cell, inputs), []
    for probe in probes:
        if probe.name not in actual.names:
            rows.append(ProbeRow(probe.name, probe.tensor, "missing", note="the graph has no such value"))
            continue
        truth = expected.take(probe.name)
        rounding = noise.measure(probe, truth) if noise else None
        row = _compare_probe(probe, truth, actual.take(probe.name), rounding, inputs.valid, precision)
        if probe.name == LOGITS and not row and isinstance(graph, GraphSource) and graph.read_logits is not None:
            read = _compare_probe(probe, truth, graph.read_logits, rounding, inputs.valid, precision)
            row = replace(row, note=FUSED) if read else row
        rows.append(row)
    return Run.of(cell, rows)


class _Noise:
    """What rounding does to each quantity: the eager model's own error, of a small cell on more inputs than its own."""

    def __init__(self, reference: Source, eager: Source, cell: Cell, inputs: CellInputs, vocab_size: int) -> None:
        """Read what is to be compared."""
        self._valid, self._own = inputs.valid, eager.read(cell, inputs)
        more = build_noise_inputs(cell, vocab_size)
        self._others = (reference.read(*more), eager.read(*more), more[1].valid) if more else None

    def measure(self, probe: Probe, expected: np.ndarray) -> float:
        """Return the relative error of a quantity, whose exact values are given."""
        own = _measure(probe, expected, self._own.take(probe.name), self._valid).error
        if self._others is None or not math.isfinite(own):
            return own
        exact, eager, valid = self._others
        other = _measure(probe, exact.take(probe.name), eager.take(probe.name), valid).error
        return max(own, other) if math.isfinite(other) else own


def _measure(probe: Probe, expected: np.ndarray, actual: np.ndarray, valid: np.ndarray) -> Deviation:
    region = build_region(QUANTITIES[Point.parse(probe.name).quantity], expected.shape, valid)
    return measure_deviation(expected, actual, region)


def _compare_probe(
    probe: Probe, expected: np.ndarray, actual: np.ndarray, noise: float | None, valid: np.ndarray, precision: str
) -> ProbeRow:
    if actual.shape != expected.shape:
        note = f"it has shape {actual.shape}, the reference's has {expected.shape}"
        return ProbeRow(probe.name, probe.tensor, "wrong", note=note)
    limit, quantity = compute_limit(noise, precision), QUANTITIES[Point.parse(probe.name).quantity]
    found = _measure(probe, expected, actual, valid)
    status: ProbeStatus = "infinite" if not found.is_finite else "wrong" if found.error > limit else "clean"
    return ProbeRow(
        probe.name,
        probe.tensor,
        status,
        _drop_infinity(found.error),
        _drop_infinity(noise),
        limit,
        "" if status == "clean" else describe_deviation(found, quantity.kind, limit),
    )


def _drop_infinity(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
