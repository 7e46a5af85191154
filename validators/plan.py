"""The length plan: which batches and lengths are compared, and with which inputs.

Short default lengths never leave the first, padded chunk, and that is where other tools' checks end. This plan
crosses the chunk boundary from both sides and then doubles up to the longest sequence that the graph promises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flash_export.errors import InputError
from flash_export.manifest import AxisRange
from flash_export.runtime.inputs import check_axis

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flash_export.manifest import GraphSpec, TensorSpec
    from flash_export.models.base import ModelConfig

DEFAULT_BATCHES = (1, 3)
DEFAULT_CELL_TOKENS = 65536
# The gau family attends to the whole sequence and has no chunk; this only decides where its lengths are probed.
PROBE_CHUNK_SIZE = 128


@dataclass(frozen=True)
class Cell:
    """One shape to compare: a batch of sequences, with or without right padding."""

    batch: int
    seq_len: int
    masked: bool

    @property
    def tokens(self) -> int:
        """Number of positions, padding included."""
        return self.batch * self.seq_len

    def __str__(self) -> str:
        return f"{self.batch} x {self.seq_len}{' masked' if self.masked else ''}"


@dataclass(frozen=True)
class CellInputs:
    """Inputs of a cell: ``input_ids`` ``(batch, seq)`` and the true length of each row."""

    input_ids: np.ndarray
    lengths: np.ndarray

    @property
    def valid(self) -> np.ndarray:
        """Bool ``(batch, seq)``: True for real tokens."""
        return np.arange(self.input_ids.shape[1]) < self.lengths[:, None]


def get_probe_chunk(config: ModelConfig) -> int:
    """Return the chunk size that the plan is built around."""
    return int(getattr(config, "chunk_size", PROBE_CHUNK_SIZE))


def get_axis(graph: GraphSpec, name: str) -> AxisRange:
    """Return the range of ``batch`` or ``seq``; an axis of fixed size has a range of one value."""
    size = graph.inputs[0].shape[("batch", "seq").index(name)]
    return AxisRange(size, size) if isinstance(size, int) else graph.axes[size]


def plan_lengths(chunk_size: int, seq_axis: AxisRange) -> tuple[int, ...]:
    """Return the default lengths within the range: both sides of the chunk boundary, a prime, and powers of two.

    >>> from flash_export.manifest import AxisRange
    >>> plan_lengths(16, AxisRange(1, 256))
    (1, 2, 4, 8, 15, 16, 17, 32, 53, 64, 67, 128, 256)
    """
    c = chunk_size
    lengths = {1, 2, c - 1, c, c + 1, 2 * c, _find_prime_above(3 * c), 4 * c + 3}
    lengths |= {1 << power for power in range(seq_axis.max.bit_length())}
    return tuple(sorted(length for length in lengths if length in seq_axis))


def plan_cells(graph: GraphSpec, seq_lens: Iterable[int], batches: Iterable[int]) -> tuple[Cell, ...]:
    """Return every batch at every length; with a mask input also masked, where there is room for padding.

    A length of 1 in a batch of 1 cannot be padded: a row has at least one real token.
    """
    return tuple(
        Cell(batch, seq_len, masked)
        for seq_len in sorted(set(seq_lens))
        for batch in sorted(set(batches))
        for masked in ((False, True) if graph.has_mask and batch * seq_len > 1 else (False,))
    )


def check_lengths(graph: GraphSpec, seq_lens: Sequence[int] | None, batches: Sequence[int] | None) -> None:
    """Check lengths and batches that a user asked for against the graph's ranges.

    Raises:
        InputError: One lies outside.
    """
    for name, values in (("seq", seq_lens), ("batch", batches)):
        if values is not None and not values:
            raise InputError(f"no value was given for {name}; give at least one, or leave the option out")
        for value in values or ():
            check_axis(name, value, get_axis(graph, name))


def describe_default_omission(cell: Cell) -> str | None:
    """Say why the default plan leaves a cell out, or None when it does not.

    A batch repeats the work of one row; beyond this many tokens on a CPU it takes most of the time and tells little
    that the single row of that length has not told.
    """
    if cell.batch == 1 or cell.tokens <= DEFAULT_CELL_TOKENS:
        return None
    return (
        f"left out by default: {cell.batch} x {cell.seq_len} is more than {DEFAULT_CELL_TOKENS} tokens; check it with "
        f"--seq-lens {cell.seq_len} --batch {cell.batch}"
    )


def build_cell_inputs(cell: Cell, vocab_size: int, seed: int = 0) -> CellInputs:
    """Draw the token ids and row lengths of a cell; the same cell always gets the same ones.

    In a masked batch the first row is full and the others are shorter; a single masked row is always shorter. What
    stands in the padding is random too, so that a graph that reads it is found out.
    """
    rng = np.random.default_rng([seed, cell.batch, cell.seq_len])
    input_ids = rng.integers(0, vocab_size, size=(cell.batch, cell.seq_len), dtype=np.int64)
    lengths = np.full(cell.batch, cell.seq_len, dtype=np.int64)
    if cell.masked and cell.seq_len > 1:
        first = 0 if cell.batch == 1 else 1
        lengths[first:] = rng.integers(1, cell.seq_len, size=cell.batch - first)
    return CellInputs(input_ids, lengths)


def build_graph_inputs(specs: Iterable[TensorSpec], inputs: CellInputs) -> dict[str, np.ndarray]:
    """Return the named arrays that these inputs are; a mask of ones where nothing is padded."""
    arrays: dict[str, Any] = {"input_ids": inputs.input_ids, "attention_mask": inputs.valid}
    return {spec.name: arrays[spec.name].astype(spec.dtype) for spec in specs}


def _find_prime_above(start: int) -> int:
    candidate = start + 1
    while any(candidate % divisor == 0 for divisor in range(2, int(candidate**0.5) + 1)):
        candidate += 1
    return candidate
