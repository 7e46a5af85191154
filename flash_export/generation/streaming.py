"""The prefill and decode graphs as one runner that answers like the forward graph: what validation compares.

A text is read as production reads it: whole segments, a ragged rest, then single tokens, the rows of a batch switching
over at different positions. Where they switch is drawn from the shape, so that the same shape is always split alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flash_export.generation.state import State
from flash_export.models.token_model import LOGITS, TOKENS
from flash_export.runtime.inputs import check_axis, check_input_names

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from jaxtyping import Int
    from typing_extensions import Self

    from flash_export.generation.backends import StatePair

MAX_SEGMENT_LEN = 2048
# Tokens before the last chunk boundary that decoding starts at, so that it crosses the boundary.
LEAD = 3


@dataclass(frozen=True)
class TextSplit:
    """How a batch of texts is read.

    Attributes:
        segments: Lengths of the segments that all rows share, whole chunks each.
        rests: Length of each row's last segment, ``(batch,)``.
        num_steps: Number of single tokens of each row after it, ``(batch,)``.
    """

    segments: tuple[int, ...]
    rests: Int[np.ndarray, " batch"]
    num_steps: Int[np.ndarray, " batch"]


def split_text(batch: int, seq_len: int, chunk_size: int) -> TextSplit:
    """Draw a split of texts of at least two tokens; the first row decodes across the last chunk boundary.

    >>> split_text(1, 300, 256)
    TextSplit(segments=(), rests=array([253]), num_steps=array([47]))
    """
    rng = np.random.default_rng([batch, seq_len])
    num_steps = np.full(batch, min(seq_len % chunk_size + LEAD, seq_len - 1))
    num_steps[1:] = rng.integers(1, num_steps[0], size=batch - 1, endpoint=True)
    num_chunks = (seq_len - int(num_steps.max()) - 1) // chunk_size  # every row keeps a token for its rest
    segments = []
    while num_chunks:
        taken = int(rng.integers(1, min(num_chunks, max(MAX_SEGMENT_LEN // chunk_size, 1)), endpoint=True))
        segments.append(taken * chunk_size)
        num_chunks -= taken
    return TextSplit(tuple(segments), seq_len - sum(segments) - num_steps, num_steps)


class StreamingRunner:
    """Answers ``input_ids`` with the logits of every position, as the forward graph does."""

    def __init__(self, pair: StatePair) -> None:
        """Wrap the open graphs of one model; entering and leaving the runner enters and leaves them."""
        self._pair = pair

    @property
    def pair(self) -> StatePair:
        """The graphs."""
        return self._pair

    @property
    def name(self) -> str:
        """Name in reports."""
        return f"stream:{self._pair.prefill.name}"

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Read the texts in pieces.

        Raises:
            InputError: An input is missing or unknown, or the batch is out of the graphs' range.
            StateError: The state became NaN or infinite.
        """
        check_input_names(inputs, required=[TOKENS])
        input_ids, graph = inputs[TOKENS], self._pair.graph
        batch, seq_len = input_ids.shape
        check_axis("batch", batch, graph.axes["batch"])
        logits = np.zeros((batch, seq_len, int(graph.outputs[0].shape[-1])), np.float32)
        state, start, rows = State.zeros(graph, batch), 0, np.arange(batch)
        ends = np.zeros(batch, np.int64)
        if seq_len > 1:
            split = split_text(batch, seq_len, self._pair.chunk_size)
            for lengths in (*(np.full(batch, length) for length in split.segments), split.rests):
                segment = input_ids[:, start : start + int(lengths.max())]
                state = state.reserve(graph, lengths)
                outputs = self._pair.prefill.run({TOKENS: segment, "lengths": lengths, **state.to_inputs()})
                for row, length in enumerate(lengths):
                    logits[row, start : start + length] = outputs[LOGITS][row, :length]
                state = State.from_outputs(graph, outputs)
                ends, start = start + lengths, start + int(lengths.min())
        self._pair.decoder.load_state(state)
        for step in range(int((seq_len - ends).max())):
            through = np.flatnonzero(ends + step == seq_len)
            if through.size and state.growing:  # there may be no room for what is not read
                self._empty(through)
            positions = np.minimum(ends + step, seq_len - 1)  # a row that is through repeats its last token, unread
            stepped = self._pair.decoder.step(input_ids[rows, positions])
            going_on = ends + step < seq_len
            logits[rows[going_on], positions[going_on]] = stepped[going_on]
        return {LOGITS: logits}

    def _empty(self, rows: Int[np.ndarray, " rows"]) -> None:
        """Let rows begin again from nothing."""
        decoder = self._pair.decoder
        decoder.load_state(decoder.read_state().replace(rows, State.zeros(self._pair.graph, rows.size)))

    def __enter__(self) -> Self:
        """Enter both graphs."""
        self._pair.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave them."""
        self._pair.__exit__(kind, error, trace)
