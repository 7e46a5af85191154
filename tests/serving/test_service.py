"""A service answers calls as ``generate`` does, and each ends alone: answered, refused, cancelled, late or failed."""

from __future__ import annotations

import itertools
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest

from flash_export.generation.batcher import Batcher
from flash_export.generation.generate import Generator
from flash_export.generation.sampling import SamplingOptions
from flash_export.serving import service as service_module
from flash_export.serving.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flash_export.bundle.bundle import Bundle
    from flash_export.generation.batcher import End, Event

WAIT_S = 60.0


@dataclass(eq=False)
class Client:
    """A call that keeps its replies."""

    prompt: np.ndarray
    parameters: dict[str, object] = field(default_factory=dict)
    replies: list[list[int]] = field(default_factory=list)
    end: End | None = None
    error: str | None = None
    is_gone: bool = False
    done: threading.Event = field(default_factory=threading.Event)

    def is_cancelled(self) -> bool:
        return self.is_gone

    def send(self, tokens: list[int], end: End | None) -> None:
        assert not self.done.is_set()
        self.replies.append(tokens)
        self.end = end
        if end:
            self.done.set()

    def fail(self, message: str) -> None:
        assert not self.done.is_set()
        self.error = message
        self.done.set()

    @property
    def tokens(self) -> list[int]:
        return list(itertools.chain(*self.replies))


@pytest.fixture(scope="module")
def generator(causal_byte_bundle: Bundle) -> Iterator[Generator]:
    with Generator.open(causal_byte_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "POLL_S", 0.0)


@contextmanager
def serve(
    generator: Generator, *calls: Client, slots: int = 4, max_waiting: int = 100, timeout_s: float = WAIT_S
) -> Iterator[Service]:
    """Run a service, with calls that are there before it begins."""
    service = Service(lambda: Batcher(generator, slots), max_waiting=max_waiting, timeout_s=timeout_s)
    for call in calls:
        service.submit(call)
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        yield service
    finally:
        service.close()
        thread.join(WAIT_S)
    assert not thread.is_alive()


def draw_prompts(number: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 257, rng.integers(1, 40)) for _ in range(number)]


def test_calls_are_answered_as_generate_answers(generator: Generator) -> None:
    prompts = draw_prompts(12)
    calls = [
        Client(prompt, {"max_tokens": 9, "temperature": 0.9, "seed": row, "tokens_per_reply": 1 + row % 4})
        for row, prompt in enumerate(prompts)
    ]
    with serve(generator, *calls) as service:
        assert all(call.done.wait(WAIT_S) for call in calls)
    for row, call in enumerate(calls):
        alone = generator.generate([prompts[row]], SamplingOptions(0.9, max_tokens=9, seed=row)).tokens[0]
        assert (call.tokens, call.end, call.error) == (alone.tolist(), "length", None)
        size = 1 + row % 4
        assert [len(reply) for reply in call.replies[:-1]] == [size] * ((9 - 1) // size)
    assert service.counts == {
        "answered": 12, "tokens": 108, "refused": 0, "cancelled": 0, "timed_out": 0, "failed": 0
    }  # fmt: skip


def test_a_stop_token_ends_a_call(generator: Generator) -> None:
    (prompt,) = draw_prompts(1)
    written = generator.generate([prompt], SamplingOptions(max_tokens=8)).tokens[0].tolist()
    stop = written[3]
    call = Client(prompt, {"stop_tokens": str(stop)})
    with serve(generator, call):
        assert call.done.wait(WAIT_S)
    assert (call.tokens, call.end) == (written[: written.index(stop) + 1], "stop")


def test_no_tokens_are_an_answer_too(generator: Generator) -> None:
    call = Client(draw_prompts(1)[0], {"max_tokens": 0})
    with serve(generator, call):
        assert call.done.wait(WAIT_S)
    assert (call.replies, call.end) == ([[]], "length")


def test_more_than_may_wait_are_refused(generator: Generator) -> None:
    calls = [Client(prompt, {"max_tokens": 3}) for prompt in draw_prompts(5)]
    with serve(generator, *calls, slots=1, max_waiting=2) as service:
        assert all(call.done.wait(WAIT_S) for call in calls)
    assert [call.end for call in calls] == ["length", "length", None, None, None]
    assert calls[2].error == "2 requests wait already, which is the most (max_waiting); ask again later"
    assert (service.counts["refused"], service.counts["answered"]) == (3, 2)


@pytest.mark.parametrize(
    ("prompt", "parameters", "message"),
    [
        (np.zeros(0, np.int64), {}, "has no tokens"),
        (np.array([257]), {}, "has 257, token ids are 0 to 256 here"),
        (np.array([1]), {"temprature": 1.0}, r"unknown field 'temprature' \(did you mean temperature"),
        (np.array([1]), {"stop_tokens": "300"}, r"token ids are 0 to 256"),
    ],
)
def test_a_call_that_is_wrong_is_refused_alone(
    generator: Generator, prompt: np.ndarray, parameters: dict[str, object], message: str
) -> None:
    wrong, right = Client(prompt, parameters), Client(np.array([1]), {"max_tokens": 2})
    with serve(generator, wrong, right):
        assert wrong.done.wait(WAIT_S)
        assert right.done.wait(WAIT_S)
    assert wrong.error is not None
    assert re.search(message, wrong.error)
    assert right.end == "length"


def test_the_slot_of_a_client_that_has_gone_is_free(generator: Generator) -> None:
    prompts = draw_prompts(2)
    gone, patient = Client(prompts[0], {"max_tokens": 10**9}), Client(prompts[1], {"max_tokens": 4})
    with serve(generator, gone, patient, slots=1) as service:
        while not gone.replies:
            pass
        gone.is_gone = True
        assert patient.done.wait(WAIT_S)
    assert (gone.error, patient.end) == ("cancelled", "length")
    assert service.counts["cancelled"] == 1
    assert (service.num_running, service.num_waiting) == (0, 0)


def test_what_takes_too_long_is_ended(generator: Generator) -> None:
    late = Client(draw_prompts(1)[0], {"max_tokens": 10**9})
    with serve(generator, late, timeout_s=0.2) as service:
        assert late.done.wait(WAIT_S)
    assert late.error == "not done after 0.2 s, which is the longest (timeout_s)"
    assert late.replies
    assert service.counts["timed_out"] == 1


def test_what_is_not_answered_when_the_service_ends_fails(generator: Generator) -> None:
    endless = Client(draw_prompts(1)[0], {"max_tokens": 10**9})
    with serve(generator, endless):
        while not endless.replies:
            pass
    assert endless.error == "the model was unloaded; ask again"


def test_after_a_fault_of_the_model_the_next_call_is_answered(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, faults = Batcher.step, iter([MemoryError("no room")])

    def fail_once(batcher: Batcher) -> list[Event]:
        for fault in faults:
            raise fault
        return step(batcher)

    monkeypatch.setattr(Batcher, "step", fail_once)
    calls = [Client(prompt, {"max_tokens": 3}) for prompt in draw_prompts(3)]
    with serve(generator, *calls[:2]) as service:
        assert all(call.done.wait(WAIT_S) for call in calls[:2])
        service.submit(calls[2])
        assert calls[2].done.wait(WAIT_S)
    assert [call.error for call in calls] == ["the model failed: no room"] * 2 + [None]
    assert calls[2].end == "length"
    assert service.counts["failed"] == 2
