"""A long recording in overlapping windows, whose edges are given up: a model that sees all of a window at once.

Which samples lie in which window, and what is kept of each, is what clearvoice 0.1.2 does (``utils/decode.py``). Where
it leaves the last samples of a recording at zero, they are computed here from one more window.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from jaxtyping import Float

    # Samples of one channel to those of each source, as many.
    Run = Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, "k n"]]


@dataclass(frozen=True)
class Windows:
    """How a recording is cut.

    Attributes:
        length: Samples of a window.
        longest_whole: Samples up to which a recording is processed as a whole.
        pads_whole: Whether such a recording is padded with zeros as longer ones are.
    """

    length: int
    longest_whole: int
    pads_whole: bool = False

    @property
    def stride(self) -> int:
        """Samples from the start of a window to that of the next."""
        return int(self.length * 0.75)

    @property
    def edge(self) -> int:
        """Samples that are given up at each end of a window, but not at the start of the recording."""
        return (self.length - self.stride) // 2

    def find_padded_length(self, num_samples: int) -> int:
        """Return the length that clearvoice pads a recording to with zeros, to have whole windows."""
        if num_samples < self.length:
            return self.length
        if num_samples < self.length + self.stride:
            return self.length + self.stride
        rest = (num_samples - self.length) % self.stride
        return num_samples if rest == 0 else num_samples + self.length + rest

    def find_whole_length(self, num_samples: int) -> int:
        """Return the length at which a recording is processed that is short enough to be so as a whole."""
        return self.find_padded_length(num_samples) if self.pads_whole else num_samples

    def find_reach(self, num_samples: int) -> int:
        """Return how many samples from the start on clearvoice computes; those after them it leaves at zero."""
        if num_samples <= self.longest_whole:
            return self.find_whole_length(num_samples)
        count = (self.find_padded_length(num_samples) - self.length) // self.stride
        return count * self.stride + self.length - self.edge


class Samples:
    """Samples that arrive in blocks, of which a few are kept."""

    def __init__(self, blocks: Iterable[Float[np.ndarray, " n"]]) -> None:
        """Start with nothing."""
        self._blocks, self._kept = iter(blocks), deque[np.ndarray]()
        self.num_kept, self.total, self.is_over = 0, 0, False

    def fill(self, count: int) -> bool:
        """Read until so many are there; tell whether there were."""
        while self.num_kept < count:
            block = next(self._blocks, None)
            if block is None:
                self.is_over = True
                return False
            self._kept.append(block)
            self.num_kept += len(block)
            self.total += len(block)
        return True

    def take(self, count: int) -> Float[np.ndarray, " n"]:
        """Return so many of those that are there, with zeros behind them if they are too few, and keep them."""
        joined = np.concatenate(self._kept) if self._kept else np.zeros(0, dtype=np.float32)
        self._kept = deque([joined])
        return np.pad(joined[:count], (0, max(0, count - len(joined))))

    def drop(self, count: int) -> None:
        """Forget so many."""
        joined = np.concatenate(self._kept) if self._kept else np.zeros(0, dtype=np.float32)
        self._kept = deque([joined[count:]])
        self.num_kept = len(self._kept[0])


def process(
    samples: Samples, windows: Windows, run: Run, *, padded: bool = False
) -> Iterator[Float[np.ndarray, "k n"]]:
    """Process a recording and yield the sources piece by piece, one behind the other.

    What lies beyond the samples that were read is that of padding. It comes only when all have been read, so that
    ``samples.total`` tells how much of a piece belongs to the recording.

    Args:
        samples: The recording.
        windows: How it is cut.
        run: Processes a window.
        padded: Whether to go on as far as clearvoice does, which needs not be.
    """
    if not samples.fill(windows.longest_whole + 1):
        yield run(samples.take(windows.find_whole_length(samples.total)))
        return
    written = 0
    while True:
        if not samples.fill(windows.length):
            wanted = windows.find_reach(samples.total) if padded else 0
            if written >= max(wanted, samples.total):
                return
        piece = run(samples.take(windows.length))[:, windows.edge if written else 0 : windows.length - windows.edge]
        yield piece
        written += piece.shape[1]
        samples.drop(windows.stride)


class ContinuedOrder:
    """Puts the sources of each window into the order in which they go on with those of the window before.

    A model that separates is free to return its sources in any order. Clearvoice takes them as they come, so that
    speakers may change places from window to window.
    """

    def __init__(self, run: Run, stride: int) -> None:
        """Take what processes a window, and how far apart windows start."""
        self._run, self._stride = run, stride
        self._before: np.ndarray | None = None

    def __call__(self, samples: Float[np.ndarray, " n"]) -> Float[np.ndarray, "k n"]:
        """Process the next window."""
        found = self._run(samples)
        if self._before is not None and self._before.shape == found.shape:
            earlier, later = self._before[:, self._stride :], found[:, : found.shape[1] - self._stride]
            likeness = earlier.astype(np.float64) @ later.T.astype(np.float64)
            orders = itertools.permutations(range(len(found)))
            best = max(orders, key=lambda order: sum(likeness[index, one] for index, one in enumerate(order)))
            found = found[list(best)]
        self._before = found
        return found
