"""The graphs that carry a state as one runner that answers like the forward graph: what validation compares.

A text is read in pieces, see :func:`cut_texts`. Between them rows change their places, states are saved and loaded, and
a copy of the state goes another way first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flash_export.config import DECODE, EXTEND
from flash_export.generation.pieces import cut_texts
from flash_export.generation.state import State
from flash_export.models.token_model import LOGITS, TOKENS
from flash_export.runtime.inputs import check_axis, check_input_names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from jaxtyping import Float, Int
    from typing_extensions import Self

    from flash_export.generation.backends import StateRunners
    from flash_export.generation.pieces import Piece


class StreamingRunner:
    """Answers ``input_ids`` with the logits of every position, as the forward graph does."""

    def __init__(self, runners: StateRunners, reload_state: Callable[[State], State] | None = None) -> None:
        """Wrap the open graphs of one model; entering and leaving the runner enters and leaves them.

        Args:
            runners: The graphs.
            reload_state: Saves a state and loads it again; None: states are kept in memory alone.
        """
        self._runners, self._reload_state = runners, reload_state

    @property
    def runners(self) -> StateRunners:
        """The graphs."""
        return self._runners

    @property
    def name(self) -> str:
        """Name in reports."""
        return f"stream:{self._runners.prefill.name}"

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Read the texts in pieces.

        Raises:
            InputError: An input is missing or unknown, or the batch is out of the graphs' range.
            StateError: The state became NaN or infinite.
        """
        check_input_names(inputs, required=[TOKENS])
        input_ids, graph = inputs[TOKENS], self._runners.graph
        batch, seq_len = input_ids.shape
        check_axis("batch", batch, graph.axes["batch"])
        logits = np.zeros((batch, seq_len, int(graph.outputs[0].shape[-1])), np.float32)
        state = State.zeros(graph, batch, model_sha256=self._runners.model_sha256)
        rows, rng = np.arange(batch), np.random.default_rng(seq_len)
        pieces = cut_texts(batch, seq_len, self._runners.chunk_size)
        for index, piece in enumerate(pieces):
            order = rng.permutation(batch)
            rows, state = rows[order], state.select(order)
            if self._reload_state is not None and index == len(pieces) // 2:
                state = self._reload_state(state)
            starts, lengths = state.position, piece.lengths[rows]
            where = np.minimum(starts[:, None] + np.arange(lengths.max()), seq_len - 1)
            read, state = self._read(piece, input_ids[rows[:, None], where], lengths, state)
            for row, start, length, values in zip(rows, starts, lengths, read, strict=True):
                logits[row, start : start + length] = values[:length]
        return {LOGITS: logits}

    def _read(
        self, piece: Piece, tokens: Int[np.ndarray, "batch n"], lengths: Int[np.ndarray, " batch"], state: State
    ) -> tuple[Float[np.ndarray, "batch n vocab"], State]:
        """Return the logits of a piece, and the state after it."""
        runners = self._runners
        if piece.graph == DECODE:
            decoder = runners.decoder
            decoder.load_state(state)
            decoder.step(tokens[:, -1])  # a copy goes another way, and is let go of
            decoder.load_state(state)
            return np.stack([decoder.step(column) for column in tokens.T], axis=1), decoder.read_state()
        runner = runners.extend if piece.graph == EXTEND else runners.prefill
        assert runner is not None  # see cut_texts
        state = state.reserve(runners.graph, lengths)
        outputs = runner.run({TOKENS: tokens, "lengths": lengths, **state.to_inputs()})
        return outputs[LOGITS], State.from_outputs(runners.graph, outputs, model_sha256=runners.model_sha256)

    def __enter__(self) -> Self:
        """Enter all graphs."""
        self._runners.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave them."""
        self._runners.__exit__(kind, error, trace)
