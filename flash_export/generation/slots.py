"""The states of many sequences in one array a tensor: a sequence is a slot, and memory is known beforehand.

A state of constant size needs no pages and leaves no fragments. The sequences that are being written stand first, in
slots 0 to ``num_writing - 1``, so that a step of all of them is one run of the decode graph on the front of each array;
the slot behind them is for the one whose prompt is being read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flash_export.errors import BundleError, ConfigError
from flash_export.generation.state import State

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from flash_export.generation.backends import StateRunners
    from flash_export.generation.generate import Generator


class Slots:
    """States of up to so many sequences, and what moves them on."""

    def __init__(self, generator: Generator, capacity: int) -> None:
        """Allocate all arrays.

        Args:
            generator: Graphs of the model; nobody else may use it as long as this does.
            capacity: Most sequences at a time, the one that is being read among them.

        Raises:
            BundleError: The state of the model grows with the text, or the graphs take a fixed batch.
            ConfigError: ``capacity`` is below 1 or above the largest batch of the graphs.
        """
        self._generator, self._runners = generator, generator.runners
        _check_graphs(self._runners, capacity)
        self.capacity, self.num_writing = capacity, 0
        zeros = State.zeros(self._runners.graph, capacity, model_sha256=self._runners.model_sha256)
        self._tensors = {name: np.ascontiguousarray(value) for name, value in zeros.tensors.items()}
        self._is_attached = False

    @property
    def num_bytes(self) -> int:
        """Size of all states."""
        return sum(value.nbytes for value in self._tensors.values())

    def begin(self, state: State | None = None) -> None:
        """Put a new text, or one that goes on from a state of one row, into the slot behind those being written."""
        for name, value in self._tensors.items():
            value[self.num_writing] = 0 if state is None else state.tensors[name][0]

    def read(self, tokens: Int[np.ndarray, " seq"]) -> Float[np.ndarray, " vocab"]:
        """Read a piece of the text that was begun last, and return the logits of the token after it.

        Raises:
            InputError: A token is not in the vocabulary.
            StateError: The state became NaN or infinite.
        """
        self._detach()
        slot = slice(self.num_writing, self.num_writing + 1)
        row = State({name: value[slot] for name, value in self._tensors.items()}, self._runners.model_sha256)
        logits, state = self._generator.prefill([tokens], row)
        for name, value in self._tensors.items():
            value[slot] = state.tensors[name]
        return logits[0]

    def admit(self) -> None:
        """Count the text that was begun last among those being written."""
        self._detach()
        self.num_writing += 1

    def remove(self, slot: int) -> None:
        """Give up a slot that is written: the last of them moves there, and the one being read behind it."""
        self._detach()
        self.num_writing -= 1
        for value in self._tensors.values():
            value[slot] = value[self.num_writing]
            if self.num_writing + 1 < self.capacity:
                value[self.num_writing] = value[self.num_writing + 1]

    def step(self, tokens: Int[np.ndarray, " writing"]) -> Float[np.ndarray, "writing vocab"]:
        """Feed one token to each text being written, and return the logits of the next."""
        decoder = self._runners.decoder
        if not self._is_attached:
            front = {name: value[: self.num_writing] for name, value in self._tensors.items()}
            decoder.attach(front, self._runners.model_sha256)
            self._is_attached = True
        return decoder.step(tokens)

    def _detach(self) -> None:
        if self._is_attached:
            self._runners.decoder.detach()
            self._is_attached = False


def _check_graphs(runners: StateRunners, capacity: int) -> None:
    graph = runners.graph
    if State.zeros(graph, graph.axes["batch"].min).growing:
        raise BundleError(
            f"the state of {graph.file} grows with the text, so that memory for many is not known beforehand; "
            "run the prompts one by one with --prompt, or take a model whose state has a constant size"
        )
    lowest, highest = graph.axes["batch"].min, graph.axes["batch"].max
    if lowest > 1:
        raise BundleError(f"{graph.file} takes batches of {lowest} alone; export it again without --batch")
    if not 1 <= capacity <= highest:
        raise ConfigError(f"slots={capacity} is not usable; {graph.file} takes 1 to {highest} rows")
