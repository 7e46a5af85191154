"""The runs by which a graph that carries a state is read: blocks of texts, each row from a position of its own.

What the graph is given to go on from is what the reference says of the text before, so that whatever is wrong was
computed in this run of this graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flash_export.config import DECODE, EXTEND, PREFILL
from flash_export.interface import BATCH, SEQ

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Bool, Int

    from flash_export.bundle.manifest import GraphSpec

DEFAULT_ROWS = 3


@dataclass(frozen=True)
class Step:
    """One run of a graph.

    Attributes:
        starts: Tokens of each row that were read before.
        lengths: Tokens of each row that go into the state.
        num_tokens: Tokens of each row that the run is given.
        reads_all: Whether what stands behind a row's length is read too.
    """

    starts: Int[np.ndarray, " b"]
    lengths: Int[np.ndarray, " b"]
    num_tokens: int
    reads_all: bool

    @property
    def ends(self) -> Int[np.ndarray, " b"]:
        """Tokens of each row in the state that the run returns."""
        return self.starts + self.lengths

    @property
    def text_len(self) -> int:
        """Tokens of the texts, one more than are read: what is carried of the last shows in the one after it."""
        return int(self.starts.max()) + self.num_tokens + 1

    @property
    def valid(self) -> Bool[np.ndarray, "b n"]:
        """Which tokens have values that mean something."""
        return np.arange(self.num_tokens) < (self.num_tokens if self.reads_all else self.lengths[:, None])

    def cut(self, tokens: np.ndarray) -> np.ndarray:
        """Return the tokens that the run is given, of texts ``(b, n, ...)``."""
        return tokens[np.arange(len(self.starts))[:, None], self.starts[:, None] + np.arange(self.num_tokens)]


def plan_steps(
    name: str, graph: GraphSpec, chunk_size: int, num_tokens: int | None, batch: int | None
) -> tuple[Step, ...]:
    """Return the runs of a graph, in the order in which they are tried.

    Args:
        name: ``prefill``, ``extend`` or ``decode``.
        graph: Its contract.
        chunk_size: Tokens of a chunk.
        num_tokens: Tokens of a run; None: several numbers.
        batch: Rows; None: 3, as far as the graph allows.
    """
    rows_axis = graph.axes[BATCH]
    rows = np.arange(min(max(DEFAULT_ROWS, rows_axis.min), rows_axis.max) if batch is None else batch)
    half = chunk_size // 2 + 1
    # Where the rows start: inside a chunk whose end is ahead, at its last token, at its first, and at the first of all.
    starts = [np.array(places)[rows % len(places)] for places in _list_places(chunk_size)[name]]
    counts = {
        PREFILL: (2 * chunk_size + half, 1, chunk_size),
        EXTEND: (chunk_size, 1, half),
        DECODE: (1,) * len(starts),
    }[name]
    most = graph.axes[SEQ].max if SEQ in graph.axes else 1
    steps = []
    for places, count in zip(starts, counts if num_tokens is None else (num_tokens,) * len(starts), strict=True):
        given = min(count, most)
        lengths = np.full_like(places, given)
        if name != DECODE:  # the second row ends before the first; of extend, the third is read and not taken in
            lengths[1::3] = (given + 1) // 2
        if name == EXTEND:
            lengths[2::3] = 0
        steps.append(Step(places, lengths, given, reads_all=name != PREFILL))
    return tuple(steps)


def _list_places(chunk_size: int) -> Mapping[str, tuple[tuple[int, ...], ...]]:
    c, half = chunk_size, chunk_size // 2 + 1
    return {
        PREFILL: ((2 * c, 0, c), (c, 0), (0, 3 * c)),
        EXTEND: ((2 * c + half, c + 1, 3 * c - 1), (2 * c - 1, c, c + half), (0, half, 2 * c)),
        DECODE: ((2 * c - 1, c + half, 2 * c), (0, c, 1), (3 * c + half, half, c - 1)),
    }
