"""Feeding one token per row and step, with the state of the batch kept from step to step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from flash_export.bundle.manifest import NEW_STATE_PREFIX, STATE_PREFIX
from flash_export.errors import InputError
from flash_export.generation.state import State, find_growing
from flash_export.models.token_model import LOGITS, TOKENS
from flash_export.runtime.inputs import check_content

if TYPE_CHECKING:
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

    def __init__(self, state: State) -> None:
        """Take a state that was loaded."""
        places = state.num_places
        self._left = None if places is None else places - int(state.position.max())

    def take(self) -> bool:
        """Take the room of a token of every row; False: there is none, and the state has to grow."""
        if self._left is None:
            return True
        self._left -= 1
        return self._left >= 0


class RunnerDecoder:
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

    def read_state(self) -> State:
        """Return the state after the last step."""
        check_loaded(bool(self._state))
        tensors = {name.removeprefix(STATE_PREFIX): value for name, value in self._state.items()}
        return State(tensors, self._model_sha256, find_growing(self._graph))

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
