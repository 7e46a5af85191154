"""Continuous batching behind a server: calls come from its threads, one thread of ours writes for all of them.

A call is refused at once where too many wait, ended where its client has gone or it takes too long, and fails alone.
"""

from __future__ import annotations

import logging
import queue
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from flash_export.errors import FlashExportError, InputError
from flash_export.generation.batcher import FAILED, Batcher, Request
from flash_export.serving.call_options import read_call_options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from jaxtyping import Int

    from flash_export.generation.batcher import End, Event

POLL_S = 0.2
# What is counted: calls by how they went, and tokens.
ANSWERED: Final = "answered"
REFUSED: Final = "refused"
CANCELLED: Final = "cancelled"
TIMED_OUT: Final = "timed_out"
FAULTY: Final = "failed"
TOKENS: Final = "tokens"
COUNTED = (ANSWERED, REFUSED, CANCELLED, TIMED_OUT, FAULTY, TOKENS)

logger = logging.getLogger(__name__)


class Call(Protocol):
    """What a client asks for, and the way back to it."""

    @property
    def prompt(self) -> Int[np.ndarray, " seq"]:
        """Token ids to go on from."""
        ...

    @property
    def parameters(self) -> Mapping[str, object]:
        """Sampling options and others, as the client wrote them."""
        ...

    def is_cancelled(self) -> bool:
        """Tell whether nobody waits for the answer."""
        ...

    def send(self, tokens: list[int], end: End | None) -> None:
        """Answer with tokens; ``end`` says why they are the last ones, None that more will come."""
        ...

    def fail(self, message: str) -> None:
        """Answer with an error, which is the last answer."""
        ...


@dataclass(eq=False)
class _Active:
    """A call that waits or is being answered."""

    call: Call
    tokens_per_reply: int
    deadline: float
    tokens: list[int] = field(default_factory=list)  # not sent yet
    end: End | None = None


class Service:
    """Answers calls with what a batcher writes."""

    def __init__(
        self,
        make_batcher: Callable[[], Batcher],
        *,
        max_waiting: int,
        timeout_s: float,
        on_poll: Callable[[Service], None] = lambda _: None,
    ) -> None:
        """Make the batcher.

        Args:
            make_batcher: Makes one; called again after a fault that was not one call's.
            max_waiting: Most calls that wait for a slot; further ones are refused.
            timeout_s: Longest time that a call may take, waiting included.
            on_poll: Called a few times a second as long as there is something to do, and when that was done.
        """
        self._make_batcher, self._batcher = make_batcher, make_batcher()
        self._max_waiting, self._timeout_s, self._on_poll = max_waiting, timeout_s, on_poll
        self._arrived: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._active: dict[str, _Active] = {}
        self._num_calls, self._next_poll, self._is_open = 0, 0.0, True
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))

    @property
    def num_waiting(self) -> int:
        """Calls that nothing was read of yet."""
        return self._batcher.num_waiting

    @property
    def num_running(self) -> int:
        """Calls that are read or written."""
        return len(self._active) - self._batcher.num_waiting

    def submit(self, call: Call) -> None:
        """Take a call; from any thread."""
        self._arrived.put(call)

    def close(self) -> None:
        """Let :meth:`run` return once it has heard of it; what is not answered by then fails."""
        self._arrived.put(None)

    def run(self) -> None:
        """Answer calls until the service is closed."""
        while self._is_open:
            self._accept()
            self._poll()
            self._advance()
        for name in tuple(self._active):
            self._give_up(name, FAULTY, "the model was unloaded; ask again")
        self._on_poll(self)

    def _accept(self) -> None:
        """Take what has arrived; with nothing to do, wait for the first."""
        block = self._batcher.is_idle
        while self._is_open:
            try:
                call = self._arrived.get(block=block)
            except queue.Empty:
                return
            block = False
            if call is None:
                self._is_open = False
            else:
                self._admit(call)

    def _admit(self, call: Call) -> None:
        self._num_calls += 1
        name = f"call-{self._num_calls}"
        try:
            if self._batcher.num_waiting >= self._max_waiting:
                raise InputError(
                    f"{self._batcher.num_waiting} requests wait already, which is the most (max_waiting); ask again "
                    "later"
                )
            options = read_call_options(call.parameters)
            self._batcher.submit(Request(name, call.prompt, options.sampling))
        except FlashExportError as error:
            self.counts[REFUSED] += 1
            call.fail(str(error))
            return
        self._active[name] = _Active(call, options.tokens_per_reply, time.monotonic() + self._timeout_s)

    def _poll(self) -> None:
        """Let go of calls that nobody waits for any more, and of those that take too long."""
        now = time.monotonic()
        if now < self._next_poll and not self._batcher.is_idle:
            return
        self._next_poll = now + POLL_S
        for name, active in tuple(self._active.items()):
            if active.call.is_cancelled():
                self._give_up(name, CANCELLED, "cancelled")
            elif now > active.deadline:
                self._give_up(
                    name, TIMED_OUT, f"not done after {self._timeout_s:g} s, which is the longest (timeout_s)"
                )
        self._on_poll(self)

    def _give_up(self, name: str, why: str, message: str) -> None:
        self._batcher.cancel(name)
        self.counts[why] += 1
        self._active.pop(name).call.fail(message)

    def _advance(self) -> None:
        """Write a token of each running text."""
        try:
            events = self._batcher.step()
        except Exception as error:
            logger.exception("a step of %d texts failed", len(self._active))
            self._batcher = self._make_batcher()
            for name in tuple(self._active):
                self._give_up(name, FAULTY, f"the model failed: {error}")
            return
        for event in events:
            self._note(event)
        for name in dict.fromkeys(event.id for event in events):
            if name in self._active:
                self._reply(name, self._active[name])
        if self._batcher.is_idle:
            self._on_poll(self)

    def _note(self, event: Event) -> None:
        active = self._active[event.id]
        if event.token is not None:
            active.tokens.append(event.token)
            self.counts[TOKENS] += 1
        elif event.end == FAILED:
            self.counts[FAULTY] += 1
            del self._active[event.id]
            active.call.fail(str(event.error))
        else:
            active.end = event.end

    def _reply(self, name: str, active: _Active) -> None:
        """Send what was written, if it is enough for a reply or the end."""
        if active.end is None and len(active.tokens) < active.tokens_per_reply:
            return
        active.call.send(active.tokens, active.end)
        active.tokens = []
        if active.end is not None:
            self.counts[ANSWERED] += 1
            del self._active[name]
