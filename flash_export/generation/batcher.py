"""Continuous batching: many sequences written at once, each beginning and ending when it likes.

with Generator.open(Bundle.open("bundle")) as generator:
    batcher = Batcher(generator, slots=16)
    batcher.submit(Request("a", prompt_ids, SamplingOptions(max_tokens=100)))
    for event in batcher.run():
        print(event.id, event.token)

Each sequence gives the tokens that it gives alone. Between two steps of those being written, prompts that wait are
read, so many tokens at most: that bounds how long a running sequence waits.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from flash_export.errors import ConfigError, FlashExportError, InputError
from flash_export.generation.generate import check_prompt
from flash_export.generation.sampling import SamplingOptions, choose_tokens
from flash_export.generation.slots import Slots
from flash_export.generation.state import check_state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float, Int

    from flash_export.generation.generate import Generator
    from flash_export.generation.state import State

DEFAULT_SLOTS = 16
DEFAULT_PROMPT_TOKENS = 1024
End = Literal["stop", "length", "failed"]
STOP: Final = "stop"
LENGTH: Final = "length"
FAILED: Final = "failed"


@dataclass(frozen=True, eq=False)
class Request:
    """A text to go on from.

    Attributes:
        id: Name of the sequence, which no other has at the same time.
        prompt: Token ids, int64, at least one.
        options: How tokens are chosen. The sequence draws from the stream of ``options.seed``, whatever the others are.
        state: State of one row that the prompt goes on from; None: a new text.
    """

    id: str
    prompt: Int[np.ndarray, " seq"]
    options: SamplingOptions = field(default_factory=SamplingOptions)
    state: State | None = None


@dataclass(frozen=True)
class Event:
    """What happened to a sequence: a token was written, or it ended.

    Attributes:
        id: Whose.
        token: The token; None where it ended.
        end: Why it ended: ``stop`` after a stop token, ``length`` after ``max_tokens``, ``failed``.
        error: What failed, in one line.
    """

    id: str
    token: int | None = None
    end: End | None = None
    error: str | None = None


@dataclass(eq=False)
class _Sequence:
    """A request on its way: how much of its prompt was read, what was written, what the next token depends on."""

    request: Request
    seen: np.ndarray
    stream: np.random.Generator
    num_read: int = 0
    num_written: int = 0
    logits: Float[np.ndarray, " vocab"] = field(default_factory=lambda: np.zeros(0, np.float32))  # after the last token


class Batcher:
    """Writes many sequences at once, in slots of one array; see the head of this file."""

    def __init__(
        self, generator: Generator, slots: int | None = None, *, prompt_tokens: int = DEFAULT_PROMPT_TOKENS
    ) -> None:
        """Allocate the slots.

        Args:
            generator: An open generator, which nobody else may use meanwhile.
            slots: Most sequences that are written at a time; None: 16, or the largest batch of the graphs.
            prompt_tokens: Most tokens of prompts that are read between two steps, rounded up to whole chunks. More is
                faster, and running sequences wait longer.

        Raises:
            BundleError: The state of the model grows with the text, or the graphs take a fixed batch.
            ConfigError: ``slots`` or ``prompt_tokens`` is out of range.
        """
        if prompt_tokens < 1:
            raise ConfigError(f"prompt_tokens={prompt_tokens} is not usable; use a whole number of at least 1")
        runners = generator.runners
        if slots is None:
            slots = min(DEFAULT_SLOTS, runners.graph.axes["batch"].max)
        self._generator, self._slots = generator, Slots(generator, slots)
        self._chunk_size = runners.chunk_size
        self._prompt_tokens = -(-prompt_tokens // self._chunk_size) * self._chunk_size
        self._waiting: deque[Request] = deque()
        self._reading: _Sequence | None = None
        self._writing: list[_Sequence] = []  # by slot

    @property
    def num_bytes(self) -> int:
        """Size of the states of all slots, which never changes."""
        return self._slots.num_bytes

    @property
    def num_slots(self) -> int:
        """Most sequences that are written at a time."""
        return self._slots.capacity

    @property
    def num_waiting(self) -> int:
        """Requests that nothing was read of yet."""
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._waiting or self._reading or self._writing)

    def submit(self, request: Request) -> None:
        """Let a request wait for a slot; the one that came first is first.

        Raises:
            InputError: Its id is in use, or its prompt cannot be read.
            ConfigError: A stop token is not in the vocabulary.
            StateError: Its state is of another model, or has more rows than one.
        """
        if request.id in self._list_ids():
            raise InputError(f"id {request.id!r} is in use; give each sequence an id of its own")
        check_prompt(f"prompt of {request.id!r}", request.prompt, self._generator.vocab_size)
        request.options.check_vocabulary(self._generator.vocab_size)
        if request.state is not None:
            runners = self._generator.runners
            check_state(request.state, runners.graph, batch=1, model_sha256=runners.model_sha256)
        self._waiting.append(request)

    def cancel(self, name: str) -> bool:
        """End a sequence at once, by its id, with no further event; its slot is free for the next.

        Returns:
            Whether there was such a sequence.
        """
        for index, sequence in enumerate(self._writing):
            if sequence.request.id == name:
                self._remove(index)
                return True
        if self._reading is not None and self._reading.request.id == name:
            self._reading = None
            return True
        kept = deque(request for request in self._waiting if request.id != name)
        was_waiting = len(kept) < len(self._waiting)
        self._waiting = kept
        return was_waiting

    def run(self) -> Iterator[Event]:
        """Work until there is nothing to do; requests may be submitted and cancelled meanwhile."""
        while not self.is_idle:
            yield from self.step()

    def step(self) -> list[Event]:
        """Read waiting prompts as far as is allowed, and write one token of each running sequence.

        Returns:
            What happened, in order. An error of one sequence ends that one alone.
        """
        events = self._read_prompts()
        events += self._write()
        return events

    def _read_prompts(self) -> list[Event]:
        left, events = self._prompt_tokens, list[Event]()
        while left > 0 and (sequence := self._choose_reading()) is not None:
            request = sequence.request
            piece = request.prompt[sequence.num_read :][: self._choose_size(sequence, left)]
            if not piece.size:
                break
            try:
                sequence.logits = self._slots.read(piece)
            except FlashExportError as error:
                self._reading = None
                events.append(Event(request.id, end=FAILED, error=str(error)))
                continue
            left -= piece.size
            sequence.num_read += piece.size
            if sequence.num_read == request.prompt.size:
                self._reading = None
                if request.options.max_tokens == 0:
                    events.append(Event(request.id, end=LENGTH))
                else:
                    self._slots.admit()
                    self._writing.append(sequence)
        return events

    def _choose_size(self, sequence: _Sequence, left: int) -> int:
        """Return how much of a prompt is read now: to its end, or a chunk's, because whole chunks are read fastest."""
        if sequence.request.prompt.size - sequence.num_read <= left:
            return left
        state = sequence.request.state
        start = sequence.num_read + (0 if state is None else int(state.position.item()))
        return max(0, left - (start + left) % self._chunk_size)

    def _choose_reading(self) -> _Sequence | None:
        """Return the sequence whose prompt is read: the one that was begun, or the next if there is a slot for it."""
        if self._reading is None and self._waiting and len(self._writing) < self._slots.capacity:
            request = self._waiting.popleft()
            seen = np.zeros(self._generator.vocab_size, np.bool_)
            seen[request.prompt] = True
            self._slots.begin(request.state)
            self._reading = _Sequence(request, seen, np.random.default_rng(request.options.seed))
        return self._reading

    def _write(self) -> list[Event]:
        """Choose a token for each running sequence, and feed those that go on."""
        events, ended = list[Event](), list[int]()
        tokens = self._choose_tokens()
        for slot, (sequence, token) in enumerate(zip(self._writing, tokens.tolist(), strict=True)):
            request = sequence.request
            if token < 0:
                error = "the model computes NaN or infinite values; see with 'flash-export validate' what it does"
                events.append(Event(request.id, end=FAILED, error=error))
                ended.append(slot)
                continue
            sequence.seen[token] = True
            sequence.num_written += 1
            events.append(Event(request.id, token))
            if token in request.options.stop_tokens or sequence.num_written == request.options.max_tokens:
                events.append(Event(request.id, end=STOP if token in request.options.stop_tokens else LENGTH))
                ended.append(slot)
        going_on = list(tokens)
        for slot in reversed(ended):
            going_on[slot] = going_on[-1]
            going_on.pop()
            self._remove(slot)
        if going_on:
            logits = self._slots.step(np.array(going_on, np.int64))
            for sequence, row in zip(self._writing, logits, strict=True):
                sequence.logits = row
        return events

    def _choose_tokens(self) -> Int[np.ndarray, " writing"]:
        """Return the next token of each running sequence, those of equal options together; -1 where logits are NaN."""
        tokens = np.full(len(self._writing), -1, np.int64)
        if not self._writing:
            return tokens
        logits = np.stack([sequence.logits for sequence in self._writing])
        groups: dict[tuple[float, int, float, float], list[int]] = {}
        for slot in np.flatnonzero(np.isfinite(logits).all(axis=1)).tolist():
            options = self._writing[slot].request.options
            key = (options.temperature, options.top_k, options.top_p, options.repetition_penalty)
            groups.setdefault(key, []).append(slot)
        for slots in groups.values():
            chosen = [self._writing[slot] for slot in slots]
            tokens[slots] = choose_tokens(
                logits[slots],
                chosen[0].request.options,
                seen=np.stack([one.seen for one in chosen]),
                draws=np.array([one.stream.random() for one in chosen]),
            )
        return tokens

    def _remove(self, slot: int) -> None:
        """Give up a slot; the last running sequence moves there."""
        self._slots.remove(slot)
        self._writing[slot] = self._writing[-1]
        self._writing.pop()

    def _list_ids(self) -> set[str]:
        running = [*self._writing, *([self._reading] if self._reading else [])]
        return {one.id for one in self._waiting} | {one.request.id for one in running}
