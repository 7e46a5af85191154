"""Decoding with an engine on a machine without a GPU: a stand-in for TensorRT computes the real decode graph."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from flash_export.config import DECODE
from flash_export.errors import InputError, StateError
from flash_export.generation.generate import Generator
from flash_export.generation.ort_state import OrtStateRunner
from flash_export.generation.trt_state import TrtStateRunner
from flash_export.runtime.ort import OrtRunner
from flash_export.runtime.trt_session import EngineOptions, LoadedEngine
from tests.runtime.trt_stub import HostDevice, Plan, describe_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle
    from flash_export.generation.state import State

    Opener = Callable[..., tuple[TrtStateRunner, Plan, HostDevice]]


@pytest.fixture
def opener(causal_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opener]:
    graph = causal_bundle.get_graph(DECODE)
    with OrtRunner(graph, causal_bundle.get_graph_path(DECODE), threads=1) as runner:

        def open_decoder(on_host: tuple[str, ...] = (), **options: Any) -> tuple[TrtStateRunner, Plan, HostDevice]:
            manifest = describe_engine(causal_bundle, DECODE)
            plan, device = Plan(manifest, runner.run, on_host=on_host), HostDevice()
            monkeypatch.setitem(sys.modules, "tensorrt", plan.make_module())
            (tmp_path / "plan").write_bytes(b"plan")
            engine = LoadedEngine(manifest, tmp_path / "plan", device, EngineOptions(**options))  # type: ignore[arg-type]
            return TrtStateRunner(graph, engine), plan, device

        yield open_decoder


@pytest.fixture(scope="module")
def state(causal_bundle: Bundle) -> State:
    with Generator.open(causal_bundle, threads=1) as generator:
        prompts = [np.arange(3, 3 + length) % 29 for length in (5, 11)]
        return generator.prefill(prompts)[1]


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("on_host", [(), ("state.position", "new_state.position")])
def test_steps_are_those_of_onnxruntime(
    opener: Opener, causal_bundle: Bundle, state: State, cuda_graphs: bool, on_host: tuple[str, ...]
) -> None:
    decoder, plan, device = opener(on_host, cuda_graphs=cuda_graphs)
    graph, path = causal_bundle.get_graph(DECODE), causal_bundle.get_graph_path(DECODE)
    with decoder, OrtStateRunner(graph, path, threads=1) as expected:
        for start in (state, state):  # what a state was loaded over is forgotten
            decoder.load_state(start)
            expected.load_state(start)
            for token in range(9):
                tokens = np.array([token, 2 * token]) % 29
                np.testing.assert_array_equal(decoder.step(tokens), expected.step(tokens))
            actual, wanted = decoder.read_state(), expected.read_state()
            assert actual.model_sha256 == wanted.model_sha256
            for name, value in wanted.tensors.items():
                np.testing.assert_array_equal(actual.tensors[name], value, err_msg=name)
        assert device.num_captured == (2 if cuda_graphs else 0)  # one for each direction
        if cuda_graphs:
            (context,) = plan.engines[0].contexts
            told = context.num_told
            decoder.step(np.array([1, 2]))
            assert context.num_told == told


def test_a_state_that_was_read_stays_as_it_is(opener: Opener, state: State) -> None:
    decoder, _, _ = opener()
    with decoder:
        decoder.load_state(state)
        decoder.step(np.array([1, 2]))
        read = decoder.read_state()
        before = {name: value.copy() for name, value in read.tensors.items()}
        for token in range(3):
            decoder.step(np.array([token, token]))
        for name, value in before.items():
            np.testing.assert_array_equal(read.tensors[name], value)


def test_another_batch_has_buffers_of_its_own(opener: Opener, causal_bundle: Bundle, state: State) -> None:
    decoder, _, _ = opener(cuda_graphs=True)
    with Generator.open(causal_bundle, threads=1) as generator:
        alone = generator.prefill([np.arange(3, 14) % 29])[1]
    with decoder:
        decoder.load_state(state)
        both = decoder.step(np.array([4, 7]))
        decoder.load_state(alone)
        np.testing.assert_allclose(decoder.step(np.array([7])), both[1:], rtol=1e-4, atol=1e-5)


def test_wrong_steps_are_refused(opener: Opener, state: State) -> None:
    decoder, _, _ = opener()
    with decoder:
        with pytest.raises(InputError, match="there is no state to decode from"):
            decoder.step(np.array([1]))
        with pytest.raises(InputError, match="there is no state"):
            decoder.read_state()
        decoder.load_state(state)
        with pytest.raises(InputError, match=r"tokens have shape \(1,\), the state has a batch of 2"):
            decoder.step(np.array([1]))
        with pytest.raises(InputError, match="tokens has 29, token ids are 0 to 28"):
            decoder.step(np.array([1, 29]))
        other = type(state)({**state.tensors, "9.kv": state.tensors["0.kv"]}, "")
        with pytest.raises(StateError, match=r"other tensors than the graph takes \(9.kv\)"):
            decoder.load_state(other)


def test_everything_is_freed_at_the_end(opener: Opener, state: State) -> None:
    decoder, _, _ = opener()
    with decoder:
        decoder.load_state(state)
        engine = decoder._engine
    assert engine.engine is None
    assert not decoder._buffers
    assert not decoder._bindings
