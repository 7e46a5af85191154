"""A batch: named arrays whose rows may be padded on the right, and the true length of each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flash_export.interface import BATCH, SEQ

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from jaxtyping import Bool, Int

    from flash_export.interface import Interface, TensorSpec

    # What a model returned, by the name of the output.
    Outputs = Mapping[str, np.ndarray]

_BLOCK_POSITIONS = 4096


@dataclass(frozen=True)
class Batch:
    """Inputs of a model, without the mask, which follows from the lengths.

    Attributes:
        interface: What the arrays are.
        arrays: By the name of the input.
        lengths: True length of each row, ``(batch,)``; what stands beyond it is padding.
        seq_len: Length of all rows, padding included.
    """

    interface: Interface
    arrays: Mapping[str, np.ndarray]
    lengths: Int[np.ndarray, " batch"]
    seq_len: int

    @classmethod
    def full(cls, interface: Interface, arrays: Mapping[str, np.ndarray]) -> Batch:
        """Return a batch without padding."""
        spec = interface.inputs[0]
        size, seq_len = _get_size(arrays[spec.name], spec, BATCH), interface.fixed_len
        for spec in interface.inputs:
            if SEQ in spec.shape:
                seq_len = _get_size(arrays[spec.name], spec, SEQ)
        assert seq_len is not None  # see Interface: an axis, or one fixed length
        return cls(interface, arrays, np.full(size, seq_len, dtype=np.int64), seq_len)

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    @property
    def is_padded(self) -> bool:
        """Whether a row is shorter than the batch."""
        return bool((self.lengths < self.seq_len).any())

    @property
    def valid(self) -> Bool[np.ndarray, "batch seq"]:
        """True for what is real, False for padding."""
        return np.arange(self.seq_len) < self.lengths[:, None]

    @property
    def valid_frames(self) -> Bool[np.ndarray, "batch frames"]:
        """The same of frames, each of which ends within the row."""
        counts = np.array([self.interface.count_frames(int(length)) for length in self.lengths])
        return np.arange(self.interface.count_frames(self.seq_len)) < counts[:, None]

    def take_rows(self, rows: Sequence[int]) -> Batch:
        """Return some rows, in this order; a row may be named twice."""
        arrays = {
            spec.name: np.take(self.arrays[spec.name], rows, axis=spec.shape.index(BATCH))
            for spec in self.interface.inputs
        }
        return Batch(self.interface, arrays, self.lengths[list(rows)], self.seq_len)

    @classmethod
    def join(cls, batches: Sequence[Batch]) -> Batch:
        """Return the rows of batches of one length as one."""
        first = batches[0]
        arrays = {
            spec.name: np.concatenate([one.arrays[spec.name] for one in batches], axis=spec.shape.index(BATCH))
            for spec in first.interface.inputs
        }
        return cls(first.interface, arrays, np.concatenate([one.lengths for one in batches]), first.seq_len)

    def cut(self, seq_len: int) -> Batch:
        """Return the first part of every row."""
        arrays = {spec.name: _cut_axis(self.arrays[spec.name], spec, seq_len) for spec in self.interface.inputs}
        return Batch(self.interface, arrays, np.minimum(self.lengths, seq_len), seq_len)

    def replace_from(self, start: int, other: Batch) -> Batch:
        """Return what this batch has before a position and another one, of the same shape, from there on."""
        arrays = {}
        for spec in self.interface.inputs:
            values, axis = self.arrays[spec.name], spec.find_axis(SEQ)
            if axis is not None:
                index = (slice(None),) * axis + (slice(start, None),)
                values = values.copy()
                values[index] = other.arrays[spec.name][index]
            arrays[spec.name] = values
        return Batch(self.interface, arrays, self.lengths, self.seq_len)

    def mask_from(self, length: int) -> Batch:
        """Return the same arrays, of which only the first part of every row is real."""
        return Batch(self.interface, self.arrays, np.minimum(self.lengths, length), self.seq_len)

    def take_apart(self) -> list[Batch]:
        """Return every row alone, without its padding."""
        return [self.take_rows([row]).cut(int(length)) for row, length in enumerate(self.lengths)]

    def to_inputs(self, specs: Iterable[TensorSpec]) -> dict[str, np.ndarray]:
        """Return the named arrays that a graph or a model takes; a mask follows from the lengths."""
        mask = self.interface.mask
        arrays = dict(self.arrays) if mask is None else {**self.arrays, mask.name: self.valid}
        return {spec.name: arrays[spec.name].astype(spec.dtype, copy=False) for spec in specs}

    def to_model_inputs(self, *, masked: bool) -> dict[str, np.ndarray]:
        """Return what the reference model takes, with the mask or without."""
        mask = self.interface.mask
        return self.to_inputs((*self.interface.inputs, *((mask,) if masked and mask is not None else ())))


def cut_output(values: np.ndarray, spec: TensorSpec, seq_len: int) -> np.ndarray:
    """Return the first part of an output along its axis ``seq``; all of it if it has none."""
    return _cut_axis(values, spec, seq_len)


def _cut_axis(values: np.ndarray, spec: TensorSpec, seq_len: int) -> np.ndarray:
    axis = spec.find_axis(SEQ)
    if axis is None:
        return values
    index = [slice(None)] * values.ndim
    index[axis] = slice(seq_len)
    return values[tuple(index)]


def _get_size(values: np.ndarray, spec: TensorSpec, axis: str) -> int:
    return int(values.shape[spec.shape.index(axis)])


def join_outputs(specs: Iterable[TensorSpec], rows: Sequence[Mapping[str, np.ndarray]], seq_len: int) -> Outputs:
    """Return the outputs of rows that were run alone as those of one batch, zeros where a row has ended."""
    joined = {}
    for spec in specs:
        batch_axis, seq_axis = spec.shape.index(BATCH), spec.find_axis(SEQ)
        first = rows[0][spec.name]
        shape = list(first.shape)
        shape[batch_axis] = len(rows)
        if seq_axis is not None:
            shape[seq_axis] = seq_len
        values = np.zeros(shape, first.dtype)
        for row, outputs in enumerate(rows):
            index: list[slice] = [slice(None)] * values.ndim
            index[batch_axis] = slice(row, row + 1)
            if seq_axis is not None:
                index[seq_axis] = slice(outputs[spec.name].shape[seq_axis])
            values[tuple(index)] = outputs[spec.name]
        joined[spec.name] = values
    return joined


def iterate_blocks(
    spec: TensorSpec, compared: Bool[np.ndarray, "batch seq"], *outputs: np.ndarray
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield what counts of some outputs of one kind, a bounded number of positions at a time: they may be gigabytes.

    Args:
        spec: What the outputs are.
        compared: Which positions count; of an output without an axis ``seq``, all of a row that has one does.
        *outputs: Arrays of the same shape.

    Yields:
        Float64 arrays ``(n, width)``, the axis ``seq`` in front; without one, the last axis stays the last.
    """
    batch_axis, seq_axis = spec.shape.index(BATCH), spec.find_axis(SEQ)
    for row in range(len(compared)):
        rows = [np.take(output, row, axis=batch_axis) for output in outputs]
        if seq_axis is None:
            if compared[row].any():
                yield tuple(values.reshape(-1, values.shape[-1]).astype(np.float64) for values in rows)
            continue
        axis = seq_axis - (batch_axis < seq_axis)
        rows = [np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1) for values in rows]
        positions = np.flatnonzero(compared[row])
        for start in range(0, len(positions), _BLOCK_POSITIONS):
            block = positions[start : start + _BLOCK_POSITIONS]
            yield tuple(values[block].astype(np.float64) for values in rows)
