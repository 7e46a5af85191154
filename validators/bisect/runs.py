"""Which inputs are tried, and what one of them shows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from flash_export.data.sources import Data, RandomSource
from flash_export.errors import InputError
from flash_export.validators.bisect.budget import compute_limit
from flash_export.validators.bisect.deviation import build_region, describe_deviation, measure_deviation
from flash_export.validators.bisect.quantities import find_valid, get_quantity, rank_probe, restore_layout
from flash_export.validators.bisect.readings import GraphReader
from flash_export.validators.bisect.results import ProbeRow, Run
from flash_export.validators.lengths import Cell, build_batch, build_noise_batch
from flash_export.validators.memory import read_free_bytes
from flash_export.validators.shape_checks import describe_exception

if TYPE_CHECKING:
    import numpy as np

    from flash_export.bundle.manifest import GraphSpec
    from flash_export.data.batch import Batch
    from flash_export.models.base import ModelConfig
    from flash_export.probes import Probe, Quantity
    from flash_export.validators.bisect.deviation import Deviation
    from flash_export.validators.bisect.readings import Reader
    from flash_export.validators.bisect.results import ProbeStatus

DEFAULT_BATCH = 2  # the second row may be padded while the first is not
FUSED = "right when the values before it are read, so that it is the runtime that joins them wrongly"


def plan_runs(graph: GraphSpec, config: ModelConfig, seq_len: int | None, batch: int | None) -> list[Cell]:
    """Return the runs in the order in which they are tried.

    The first length ends in the middle of the third chunk, or of a later one, so that every part of the model has
    something to do. What goes wrong only without an earlier chunk, or only where nothing is padded, shows at 1 and at
    the chunk.
    """
    axis, interface = graph.axes["seq"], config.interface
    size = interface.chunk_frames
    counts = (config.full_chunks * size + size // 2 + 1, 1, size)
    lengths = [interface.find_length(count) for count in counts] if seq_len is None else [seq_len]
    lengths = list(dict.fromkeys(min(max(length, axis.min), axis.max) for length in lengths))
    batches = graph.axes["batch"]
    rows = min(max(DEFAULT_BATCH, batches.min), batches.max) if batch is None else batch
    masks = (False, True) if graph.has_mask else (False,)
    return [Cell(rows, length, masked) for length in lengths for masked in masks if not masked or rows * length > 1]


def check_memory(config: ModelConfig, cell: Cell) -> None:
    """Refuse a run whose probes would not fit in half of the free memory.

    Raises:
        InputError: They would not.
    """
    # Four copies in fp32, the reference's being as large as two, of about half of what is estimated for a block.
    needed, free = 2 * config.num_blocks * config.estimate_bytes(cell.batch, cell.seq_len), read_free_bytes()
    if needed > free // 2:
        raise InputError(
            f"seq_len={cell.seq_len} with batch={cell.batch} needs about {needed / 2**30:.1f} GiB for what is read, "
            f"half of the free memory is {free / 2**31:.1f} GiB; use a smaller --seq-len"
        )


def compare_run(
    cell: Cell,
    config: ModelConfig,
    probes: tuple[Probe, ...],
    readers: tuple[Reader, Reader, Reader | None],
    precision: str,
    inputs: Batch | None = None,
) -> Run:
    """Compare a graph with the reference at every probe.

    Args:
        cell: Shape of the input.
        config: Config of the model.
        probes: What the graph can be read at.
        readers: The reference, the graph, and the eager model that tells what rounding does, if there is one.
        precision: Precision of the graph.
        inputs: What they read; None: random inputs.
    """
    data = Data(RandomSource(config.interface))
    if inputs is None:
        inputs = build_batch(cell, data)
    reference, graph, eager = readers
    try:
        actual = graph.read(cell, inputs)
    except Exception as error:  # whatever the runtime raises is what is wrong with the graph
        return Run(cell.batch, cell.seq_len, cell.masked, (), describe_exception(error))
    noise = _Noise(config, reference, eager, cell, inputs, data) if eager else None
    expected, rows = reference.read(cell, inputs), []
    for probe in sorted(probes, key=lambda probe: rank_probe(config, probe.name)):
        quantity = get_quantity(config, probe.name)
        if probe.name not in actual.names:
            note = "the graph has no such value"
            rows.append(ProbeRow(probe.name, probe.tensor, "missing", note=note, label=quantity.label))
            continue
        truth, valid = expected.take(probe.name), find_valid(config, probe.name, inputs)
        rounded = noise.measure(probe, quantity, truth) if noise else None
        row = compare_probe(probe, quantity, truth, actual.take(probe.name), rounded, valid, precision)
        if not row and isinstance(graph, GraphReader) and probe.name in graph.read_outputs:
            read = restore_layout(config, probe.name, graph.read_outputs[probe.name], cell.seq_len)
            is_right = compare_probe(probe, quantity, truth, read, rounded, valid, precision)
            row = replace(row, note=FUSED) if is_right else row
        rows.append(row)
    return Run(cell.batch, cell.seq_len, cell.masked, tuple(rows))


class _Noise:
    """What rounding does to each quantity: the eager model's own error, of a small cell on more inputs than its own."""

    def __init__(
        self, config: ModelConfig, reference: Reader, eager: Reader, cell: Cell, inputs: Batch, data: Data
    ) -> None:
        """Read what is to be compared."""
        self._config, self._inputs, self._own = config, inputs, eager.read(cell, inputs)
        more = build_noise_batch(cell, data)
        self._others = (reference.read(*more), eager.read(*more), more[1]) if more else None

    def measure(self, probe: Probe, quantity: Quantity, expected: np.ndarray) -> float:
        """Return the relative error of a quantity, whose exact values are given."""
        valid = find_valid(self._config, probe.name, self._inputs)
        own = _measure(quantity, expected, self._own.take(probe.name), valid).error
        if self._others is None or not math.isfinite(own):
            return own
        exact, eager, inputs = self._others
        valid = find_valid(self._config, probe.name, inputs)
        other = _measure(quantity, exact.take(probe.name), eager.take(probe.name), valid).error
        return max(own, other) if math.isfinite(other) else own


def _measure(quantity: Quantity, expected: np.ndarray, actual: np.ndarray, valid: np.ndarray) -> Deviation:
    return measure_deviation(expected, actual, build_region(quantity, expected.shape, valid))


def compare_probe(
    probe: Probe,
    quantity: Quantity,
    expected: np.ndarray,
    actual: np.ndarray,
    noise: float | None,
    valid: np.ndarray,
    precision: str,
) -> ProbeRow:
    """Compare one quantity; ``valid`` says which tokens mean something, ``noise`` what rounding does."""
    if actual.shape != expected.shape:
        note = f"it has shape {actual.shape}, the reference's has {expected.shape}"
        return ProbeRow(probe.name, probe.tensor, "wrong", note=note, label=quantity.label)
    limit, found = compute_limit(noise, precision), _measure(quantity, expected, actual, valid)
    status: ProbeStatus = "infinite" if not found.is_finite else "wrong" if found.error > limit else "clean"
    return ProbeRow(
        probe.name,
        probe.tensor,
        status,
        _drop_infinity(found.error),
        _drop_infinity(noise),
        limit,
        "" if status == "clean" else describe_deviation(found, quantity.kind, limit),
        quantity.label,
    )


def _drop_infinity(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
