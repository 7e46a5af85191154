"""Continuous batching: every sequence gives what it gives alone, whenever it comes, and whatever happens to others."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flash_export.errors import ConfigError, InputError, StateError
from flash_export.generation.batcher import FAILED, LENGTH, STOP, Batcher, Event, Request
from flash_export.generation.generate import Generator
from flash_export.generation.sampling import SamplingOptions
from flash_export.generation.slots import Slots
from flash_export.generation.state import State

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flash_export.bundle.bundle import Bundle

pytestmark = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is missing")
VOCAB_SIZE = 257


@pytest.fixture(scope="module")
def generator(causal_byte_bundle: Bundle) -> Iterator[Generator]:
    with Generator.open(causal_byte_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def alone(causal_byte_bundle: Bundle) -> Iterator[Generator]:
    """Another generator of the same model, which writes one sequence at a time."""
    with Generator.open(causal_byte_bundle, threads=1) as opened:
        yield opened


def make_prompt(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB_SIZE, length)


def collect(events: Sequence[Event]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for event in events:
        found.setdefault(event.id, []).extend([] if event.token is None else [event.token])
    return found


def write_alone(alone: Generator, request: Request) -> list[int]:
    written: list[int] = alone.generate([request.prompt], request.options, request.state).tokens[0].tolist()
    return written


def test_prompts_are_read_in_whole_chunks(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk_size, sizes = generator.runners.chunk_size, list[int]()
    read = Slots.read

    def note(slots: Slots, tokens: np.ndarray) -> np.ndarray:
        sizes.append(tokens.size)
        return read(slots, tokens)

    monkeypatch.setattr(Slots, "read", note)
    batcher = Batcher(generator, 4, prompt_tokens=4 * chunk_size)
    begun = generator.prefill([make_prompt(chunk_size + 3, 0)])[1]
    lengths = {"a": 2 * chunk_size + 5, "b": 6 * chunk_size + 1, "c": 4 * chunk_size}
    for name, length in lengths.items():
        state = begun if name == "c" else None
        batcher.submit(Request(name, make_prompt(length, 1), SamplingOptions(max_tokens=1), state))
    list(batcher.run())
    # What is left of a step goes to the next prompt, up to the end of a chunk; the last prompt begins in slot 3 of one.
    in_chunks = [(2, 5), (1, 0), (4, 0), (1, 1), (3, -3), (1, 3)]
    assert sizes == [chunks * chunk_size + tokens for chunks, tokens in in_chunks]


requests = st.lists(
    st.tuples(
        st.integers(1, 40),  # length of the prompt
        st.integers(0, 12),  # tokens to write
        st.sampled_from([0.0, 0.7, 1.3]),
        st.integers(0, 3),  # top_k, seed and penalty follow from it
        st.integers(0, 6),  # steps before it comes
    ),
    min_size=1,
    max_size=9,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=requests, slots=st.integers(1, 4), prompt_tokens=st.sampled_from([1, 16, 64]))
def test_a_sequence_is_what_it_is_alone(
    generator: Generator, alone: Generator, drawn: list[tuple[Any, ...]], slots: int, prompt_tokens: int
) -> None:
    asked = [
        Request(
            str(index),
            make_prompt(length, index),
            SamplingOptions(
                temperature=temperature,
                top_k=5 * kind,
                repetition_penalty=1.0 + 0.1 * kind,
                stop_tokens=(3, 5, 7) if kind else (),
                max_tokens=new,
                seed=kind,
            ),
        )
        for index, (length, new, temperature, kind, _) in enumerate(drawn)
    ]
    batcher, events = Batcher(generator, slots, prompt_tokens=prompt_tokens), list[Event]()
    for step in range(7):
        for request, (*_, comes) in zip(asked, drawn, strict=True):
            if comes == step:
                batcher.submit(request)
        events += batcher.step()
    events += batcher.run()
    assert batcher.is_idle
    found = collect(events)
    for request in asked:
        assert found[request.id] == write_alone(alone, request)
    ends = {event.id: event.end for event in events if event.end}
    for request in asked:
        stopped = bool(found[request.id]) and found[request.id][-1] in request.options.stop_tokens
        assert ends[request.id] == (STOP if stopped else LENGTH)


def test_a_sequence_goes_on_from_a_state_inside_a_chunk(generator: Generator, alone: Generator) -> None:
    _, state = alone.prefill([make_prompt(21, 0)])
    shared = Request("a", make_prompt(13, 1), SamplingOptions(max_tokens=9), state)
    batcher = Batcher(generator, 3)
    for name in "abc":
        batcher.submit(replace(shared, id=name))
    found = collect(list(batcher.run()))
    expected = write_alone(alone, shared)
    assert found == dict.fromkeys("abc", expected)


@pytest.mark.parametrize("backend", ["eager", "openvino"])
def test_backends_that_copy_the_state_write_the_same(
    causal_byte_bundle: Bundle, alone: Generator, backend: str
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    asked = [
        Request(str(index), make_prompt(5 + 9 * index, index), SamplingOptions(max_tokens=4 + index))
        for index in range(4)
    ]
    with Generator.open(causal_byte_bundle, backend, threads=1) as opened:
        batcher = Batcher(opened, 2)
        for request in asked:
            batcher.submit(request)
        found = collect(list(batcher.run()))
    assert found == {request.id: write_alone(alone, request) for request in asked}


def test_a_cancelled_sequence_gives_its_slot_away_and_nobody_notices(generator: Generator, alone: Generator) -> None:
    asked = [Request(name, make_prompt(30, index), SamplingOptions(max_tokens=12)) for index, name in enumerate("abcd")]
    batcher = Batcher(generator, 2)
    for request in asked:
        batcher.submit(request)
    events = [*batcher.step(), *batcher.step()]
    assert batcher.num_waiting == 2
    assert batcher.cancel("a")
    events += batcher.step()
    assert batcher.num_waiting == 1  # its slot was taken in the very next step
    assert batcher.cancel("d")  # waiting
    assert not batcher.cancel("d")
    events += batcher.run()
    found = collect(events)
    assert found["b"] == write_alone(alone, asked[1])
    assert found["c"] == write_alone(alone, asked[2])
    assert "d" not in found
    assert not any(event.id == "a" and event.end for event in events)


def test_what_is_wrong_with_one_ends_that_one_alone(
    generator: Generator, alone: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [Request(name, make_prompt(20, index), SamplingOptions(max_tokens=8)) for index, name in enumerate("abc")]
    batcher = Batcher(generator, 3)
    for request in asked:
        batcher.submit(request)
    decoder, step = generator.runners.decoder, generator.runners.decoder.step
    calls = iter(range(100))

    def break_one(tokens: np.ndarray) -> np.ndarray:
        logits = step(tokens)
        if next(calls) == 2:
            logits[1, 4] = np.nan
        return logits

    monkeypatch.setattr(decoder, "step", break_one)
    events = list(batcher.run())
    (failed,) = (event for event in events if event.error)
    assert (failed.id, failed.end) == ("b", FAILED)
    assert "NaN or infinite" in str(failed.error)
    monkeypatch.undo()
    found = collect(events)
    assert found["a"] == write_alone(alone, asked[0])
    assert found["c"] == write_alone(alone, asked[2])
    assert found["b"] == write_alone(alone, asked[1])[:3]


def test_a_prompt_that_cannot_be_read_ends_alone(generator: Generator, alone: Generator) -> None:
    _, state = alone.prefill([make_prompt(5, 0)])
    tensors = {name: value.copy() for name, value in state.tensors.items()}
    spoilt = next(name for name in tensors if name.endswith("kv"))
    tensors[spoilt][:] = 3e38  # finite, and no number any more after a chunk
    bad = Request("bad", make_prompt(40, 1), SamplingOptions(max_tokens=3), State(tensors, state.model_sha256))
    good = Request("good", make_prompt(40, 1), SamplingOptions(max_tokens=3))
    batcher = Batcher(generator, 2)
    batcher.submit(bad)
    batcher.submit(good)
    events = list(batcher.run())
    assert [event.id for event in events if event.end == FAILED] == ["bad"]
    assert collect(events)["good"] == write_alone(alone, good)


def test_bad_requests_are_refused_before_they_wait(generator: Generator, alone: Generator) -> None:
    batcher = Batcher(generator, 2)
    batcher.submit(Request("a", make_prompt(3, 0)))
    with pytest.raises(InputError, match="id 'a' is in use"):
        batcher.submit(Request("a", make_prompt(3, 0)))
    with pytest.raises(InputError, match="prompt of 'b' has no tokens"):
        batcher.submit(Request("b", np.zeros(0, np.int64)))
    with pytest.raises(InputError, match="token ids are 0 to 256"):
        batcher.submit(Request("b", np.array([VOCAB_SIZE])))
    with pytest.raises(ConfigError, match="stop_tokens"):
        batcher.submit(Request("b", make_prompt(3, 0), SamplingOptions(stop_tokens=(VOCAB_SIZE,))))
    with pytest.raises(StateError, match="batch of 2"):
        batcher.submit(Request("b", make_prompt(3, 0), state=alone.prefill([make_prompt(4, 0)] * 2)[1]))
    for values in ({"slots": 0}, {"prompt_tokens": 0}):
        with pytest.raises(ConfigError, match="is not usable"):
            Batcher(generator, **values)
    assert batcher.cancel("a")
    assert list(batcher.run()) == []


def test_memory_is_that_of_the_states_times_slots(generator: Generator, causal_byte_bundle: Bundle) -> None:
    a_row = sum(value.nbytes for value in State.zeros(generator.runners.graph, 1).tensors.values())
    assert Batcher(generator, 3).num_bytes == 3 * a_row
    facts = causal_byte_bundle.manifest.model
    assert facts is not None
    assert facts.state_bytes == a_row
