"""Feeding one token per row and step, with the state of the batch kept from step to step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

from flash_export.bundle.manifest import NEW_STATE_PREFIX, STATE_PREFIX
from flash_export.errors import InputError
from flash_export.generation.state import State, find_growing
from flash_export.models.token_model import LOGITS, TOKENS
from flash_export.runtime.inputs import check_content

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    import numpy as np
    from jaxtyping import Float, Int
    from typing_extensions import Self

    from flash_export.bundle.manifest import GraphSpec
    from flash_export.runtime.runner import Runner


class Decoder(Protocol):
    """A decode graph that remembers its state. A context manager that frees what it holds."""

    def load_state(self, state: State) -> None:
        """Go on from a state that was found to fit the graph; the batch becomes the state's."""
        ...

    def step(self, tokens: Int[np.ndarray, " batch"]) -> Float[np.ndarray, "batch vocab"]:
        """Feed one token per row and return the logits of the next.

        Raises:
            InputError: No state was loaded, or it has another batch.
        """
        ...

    def read_state(self) -> State:
        """Return the state after the last step, which later steps leave as it is.

        Raises:
            InputError: No state was loaded.
            StateError: It holds NaN or infinite values.
        """
        ...

    def attach(self, tensors: Mapping[str, np.ndarray], model_sha256: str) -> None:
        """Go on from a state that lies in arrays of the caller's, which hold the new one after :meth:`detach`.

        Args:
            tensors: Contiguous arrays by name without prefix, as in :class:`State`; nobody else touches them meanwhile.
            model_sha256: The model that the state belongs to.
        """
        ...

    def detach(self) -> None:
        """Leave the state in the arrays that were attached."""
        ...

    def __enter__(self) -> Self:
        """Return the decoder."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free what the decoder holds."""
        ...


class Room:
    """Counts the steps for which a state has room."""

    def __init__(self, state: State | None) -> None:
        """Take a state that was loaded; None: one of constant size."""
        places = None if state is None else state.num_places
        self._left = None if state is None or places is None else places - int(state.position.max())

    def take(self) -> bool:
        """Take the room of a token of every row; False: there is none, and the state has to grow."""
        if self._left is None:
            return True
        self._left -= 1
        return self._left >= 0


class CopyingDecoder(ABC):
    """What decoders have in common that keep the state somewhere else than in the caller's arrays."""

    _attached: Mapping[str, np.ndarray]
    _graph: GraphSpec
    _model_sha256: str

    @abstractmethod
    def load_state(self, state: State) -> None:
        """Go on from a state."""

    @abstractmethod
    def read_tensors(self) -> dict[str, np.ndarray]:
        """Return copies of the tensors of the state after the last step, whatever they hold."""

    def read_state(self) -> State:
        """Return the state after the last step.

        Raises:
            InputError: No state was loaded.
            StateError: It holds NaN or infinite values.
        """
        return State(self.read_tensors(), self._model_sha256, find_growing(self._graph))

    def attach(self, tensors: Mapping[str, np.ndarray], model_sha256: str) -> None:
        """Copy a state from the caller's arrays."""
        self.load_state(State(tensors, model_sha256))
        self._attached = tensors

    def detach(self) -> None:
        """Copy the state back."""
        for name, value in self.read_tensors().items():
            self._attached[name][...] = value


class RunnerDecoder(CopyingDecoder):
    """Any runner as a decoder: the state goes through host memory at every step."""

    _room: Room

    def __init__(self, runner: Runner, graph: GraphSpec) -> None:
        """Wrap a runner of a decode graph; entering and leaving the decoder enters and leaves it."""
        self._runner, self._graph = runner, graph
        self._state: dict[str, np.ndarray] = {}
        self._model_sha256 = ""

    def load_state(self, state: State) -> None:
        """Go on from a state."""
        self._state, self._model_sha256, self._room = state.to_inputs(), state.model_sha256, Room(state)

    def step(self, tokens: Int[np.ndarray, " batch"]) -> Float[np.ndarray, "batch vocab"]:
        """Feed one token per row and return the logits of the next."""
        check_loaded(bool(self._state))
        if not self._room.take():
            self.load_state(self.read_state().reserve(self._graph, 1))
            return self.step(tokens)
        outputs = self._runner.run({TOKENS: tokens[:, None], **self._state})
        logits = outputs.pop(LOGITS)
        self._state = {name.replace(NEW_STATE_PREFIX, STATE_PREFIX, 1): value for name, value in outputs.items()}
        return logits[:, 0]

    def read_tensors(self) -> dict[str, np.ndarray]:
        """Return the tensors of the state after the last step."""
        check_loaded(bool(self._state))
        return {name.removeprefix(STATE_PREFIX): value for name, value in self._state.items()}

    def __enter__(self) -> Self:
        """Enter the runner."""
        self._runner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the runner."""
        self._runner.__exit__(kind, error, trace)


def check_loaded(loaded: bool) -> None:
    """Refuse a step without a state.

    Raises:
        InputError: No state was loaded.
    """
    if not loaded:
        raise InputError("there is no state to decode from; prefill a prompt, or load a state first")


def check_tokens(graph: GraphSpec, tokens: Int[np.ndarray, " batch"], batch: int) -> None:
    """Check the tokens of a step: one per row, each in the vocabulary.

    Raises:
        InputError: They are not.
    """
    if tokens.shape != (batch,):
        raise InputError(f"tokens have shape {tokens.shape}, the state has a batch of {batch}; give one per row")
    if (ids := graph.inputs[0].content) is not None:
        check_content("tokens", tokens, ids)
