"""How a batch of texts is cut into pieces for the graphs that carry a state: as they are read in production, at random.

Whole segments, ragged ones, blocks that begin and end anywhere, single tokens across the end of a chunk; the rows of a
batch are at different positions, and every graph goes on from what every other one left behind. What is drawn depends
on the shape alone, so that the same shape is always cut alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flash_export.config import DECODE, EXTEND, PREFILL

if TYPE_CHECKING:
    from jaxtyping import Int

MAX_SEGMENT_LEN = 2048
# Tokens before the end of a chunk that decoding starts at, at most.
LEAD = 3
_NUM_BLOCKS = 2  # each followed by single tokens


@dataclass(frozen=True)
class Piece:
    """One run of a graph; of decode one of as many tokens of each row, one after another.

    Attributes:
        graph: Its name.
        lengths: Tokens of each row, ``(batch,)``.
    """

    graph: str
    lengths: Int[np.ndarray, " batch"]


def cut_texts(batch: int, seq_len: int, chunk_size: int) -> tuple[Piece, ...]:
    """Draw how texts of at least one token are read; a row that is through takes part in blocks of no tokens alone.

    Args:
        batch: Rows.
        seq_len: Tokens of each.
        chunk_size: Prefill starts at multiples of it, and extend takes as many at most; 1: prefill starts anywhere,
            and there is no extend.

    >>> [(piece.graph, int(piece.lengths[0])) for piece in cut_texts(1, 20, 16)]
    [('prefill', 6), ('extend', 2), ('decode', 3), ('extend', 2), ('decode', 3), ('prefill', 3), ('extend', 1)]
    """
    return (_Chunked if chunk_size > 1 else _Anywhere)(batch, seq_len, chunk_size).cut()


class _Cutter:
    """Cuts texts from left to right."""

    def __init__(self, batch: int, seq_len: int, chunk_size: int) -> None:
        self._rng = np.random.default_rng([batch, seq_len])
        self._seq_len, self._chunk_size = seq_len, chunk_size
        self._position = np.zeros(batch, np.int64)
        self._pieces: list[Piece] = []

    @property
    def _left(self) -> Int[np.ndarray, " batch"]:
        return self._seq_len - self._position

    def _read(self, graph: str, lengths: Int[np.ndarray, " batch"]) -> None:
        if lengths.any():
            self._pieces.append(Piece(graph, lengths))
            self._position = self._position + lengths

    def _read_segments(self, num_chunks: int) -> None:
        """Read so many chunks of all rows, some at once."""
        most = max(MAX_SEGMENT_LEN // self._chunk_size, 1)
        while num_chunks > 0:
            taken = int(self._rng.integers(1, min(num_chunks, most), endpoint=True))
            self._read(PREFILL, np.full_like(self._position, taken * self._chunk_size))
            num_chunks -= taken

    def _read_ragged(self, graph: str, least: int, most: int) -> None:
        """Read a number of tokens of each row that is its own, and leave one at least."""
        most_each = np.minimum(self._left - 1, most)
        if most_each.min() >= least:
            self._read(graph, self._rng.integers(least, most_each, endpoint=True))

    def _decode(self, most: int) -> None:
        """Read single tokens, as many of every row, and leave one at least."""
        self._read(DECODE, np.full_like(self._position, min(most, int(self._left.min()) - 1)))


class _Chunked(_Cutter):
    def cut(self) -> tuple[Piece, ...]:
        """Read whole chunks, then what production does in any order, then the rest in blocks."""
        self._read_segments((self._seq_len - 1) // self._chunk_size - 4)
        self._read_ragged(PREFILL, 1, self._chunk_size)
        parts = (self._read_blocks, self._close_chunks, self._cross_boundary)
        for index in self._rng.permutation(len(parts)):
            parts[index]()
        while self._left.any():
            self._read(EXTEND, np.minimum(self._left, self._chunk_size))
        return tuple(self._pieces)

    def _read_blocks(self) -> None:
        """Read blocks that begin and end anywhere, and a few single tokens after each."""
        for _ in range(_NUM_BLOCKS):
            self._read_ragged(EXTEND, 0, int(self._rng.integers(1, self._chunk_size, endpoint=True)))
            self._decode(LEAD)

    def _close_chunks(self) -> None:
        """Read to the end of each row's chunk, and on from there by prefill."""
        to_boundary = -self._position % self._chunk_size
        if (self._left - to_boundary).min() > 1:
            self._read(EXTEND, to_boundary)
            self._read_ragged(PREFILL, 1, self._chunk_size)

    def _cross_boundary(self) -> None:
        """Read single tokens across the end of a chunk, each row from its own position before it."""
        ahead = self._rng.integers(1, LEAD, size=self._position.size, endpoint=True)
        boundaries = -(-(self._position + ahead) // self._chunk_size) * self._chunk_size
        if (boundaries + LEAD < self._seq_len).all():
            self._read(EXTEND, boundaries - ahead - self._position)
            self._decode(2 * LEAD)


class _Anywhere(_Cutter):
    def cut(self) -> tuple[Piece, ...]:
        self._read_segments(self._seq_len // 2)
        for _ in range(_NUM_BLOCKS):
            self._read_ragged(PREFILL, 1, max(self._seq_len // 4, 1))
            self._decode(LEAD)
        last = min(LEAD, int(self._left.min()) - 1)
        if (self._left > last).all():
            self._read(PREFILL, self._left - last)
        self._read(DECODE, self._left)
        return tuple(self._pieces)
