"""Streaming against the reference model: one full pass gives what the state graphs must give at every position."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flash_export.bundle.bundle import Bundle
from flash_export.bundle.manifest import AxisRange, GraphSpec, Manifest
from flash_export.errors import BundleError, ConfigError, InputError, StateError
from flash_export.generation.backends import StateRunners
from flash_export.generation.decoder import RunnerDecoder
from flash_export.generation.eager_state import EagerStateRunner, describe_eager_graph
from flash_export.generation.generate import Generator
from flash_export.generation.ort_state import OrtStateRunner
from flash_export.generation.sampling import SamplingOptions
from flash_export.generation.state import State, identify_model
from flash_export.interface import Interface, TensorSpec
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.runtime.ort import OrtRunner
from flash_export.runtime.trt_session import EngineOptions, LoadedEngine
from tests.conftest import INTERFACE, PROVENANCE
from tests.runtime.trt_stub import HostDevice, Plan, describe_engine

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from flash_export.bundle.manifest import EngineManifest
    from flash_export.generation.decoder import Decoder

VOCAB_SIZE, CHUNK_SIZE, MAX_SEQ_LEN = 29, 8, 60


def make_ids(*lengths: int, seed: int = 1) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, VOCAB_SIZE, length) for length in lengths]


def compute_logits(model: FlashModel, ids: np.ndarray) -> np.ndarray:
    """Return the logits of every position in one pass."""
    logits: np.ndarray = model(torch.from_numpy(ids)[None])[0].numpy()
    return logits


def check_close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def open_decoders(bundle: Bundle) -> tuple[Decoder, Decoder]:
    graph, path = bundle.get_graph("decode"), bundle.get_graph_path("decode")
    return OrtStateRunner(graph, path, threads=1), RunnerDecoder(OrtRunner(graph, path, threads=1), graph)


@pytest.fixture(scope="module")
def model(causal_bundle: Bundle) -> FlashModel:
    model = causal_bundle.load_model()
    assert isinstance(model, FlashModel)
    return model


@pytest.fixture(scope="module")
def generator(causal_bundle: Bundle) -> Iterator[Generator]:
    with Generator.open(causal_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def eager(causal_bundle: Bundle) -> Iterator[Generator]:
    with Generator.open(causal_bundle, "eager", threads=1) as opened:
        yield opened


# --- streaming is the full pass


def test_every_position_of_ragged_rows_is_that_of_one_full_pass(generator: Generator, model: FlashModel) -> None:
    starts = (1, 7, 8, 21)
    texts = make_ids(*(start + 27 for start in starts))
    expected = [compute_logits(model, text) for text in texts]
    logits, state = generator.prefill([text[:start] for text, start in zip(texts, starts, strict=True)])
    for step in range(27):
        assert state.position.tolist() == [start + step for start in starts]
        for row, start in enumerate(starts):
            check_close(logits[row], expected[row][start + step - 1])
        tokens = [text[start + step : start + step + 1] for text, start in zip(texts, starts, strict=True)]
        logits, state = generator.prefill(tokens, state)


def test_every_decode_step_is_that_of_one_full_pass(causal_bundle: Bundle, model: FlashModel) -> None:
    (text,) = make_ids(45)
    expected = compute_logits(model, text)
    with OrtStateRunner(causal_bundle.get_graph("decode"), causal_bundle.get_graph_path("decode")) as decoder:
        decoder.load_state(State.zeros(causal_bundle.get_graph("decode"), 1))
        for position, token in enumerate(text):
            check_close(decoder.step(np.array([token]))[0], expected[position])
        assert decoder.read_state().position.tolist() == [45]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(*[st.integers(1, 26)] * 3), min_size=1, max_size=3), st.integers(1, 40))
def test_any_pieces_and_segments_give_the_full_pass(
    generator: Generator, model: FlashModel, pieces: list[tuple[int, ...]], segment_len: int
) -> None:
    texts = make_ids(*(sum(counts) for counts in zip(*pieces, strict=True)))
    state, fed = None, np.zeros(3, np.int64)
    for counts in pieces:
        prompts = [text[start : start + count] for text, start, count in zip(texts, fed, counts, strict=True)]
        logits, state = generator.prefill(prompts, state, segment_len=segment_len)
        fed += counts
        for row in range(3):
            check_close(logits[row], compute_logits(model, texts[row][: fed[row]])[-1])


def test_prompt_longer_than_the_longest_sequence_of_the_graph(generator: Generator, model: FlashModel) -> None:
    texts = make_ids(MAX_SEQ_LEN * 3 + 5, 2)
    logits, state = generator.prefill(texts, segment_len=10_000)
    assert state.position.tolist() == [185, 2]
    for row in range(2):
        check_close(logits[row], compute_logits(model, texts[row])[-1])


def test_every_backend_streams_the_same(causal_bundle: Bundle, generator: Generator, eager: Generator) -> None:
    prompts = make_ids(3, 12)
    logits, state = generator.prefill(prompts)
    check_close(eager.prefill(prompts)[0], logits)
    steps = []
    for decoder in open_decoders(causal_bundle):
        with decoder:
            decoder.load_state(state)
            logits = np.stack([decoder.step(np.array([token, 7])) for token in range(12)])
            steps.append((logits, decoder.read_state().tensors))
    assert np.array_equal(steps[0][0], steps[1][0])
    assert all(np.array_equal(value, steps[1][1][name]) for name, value in steps[0][1].items())


def test_steps_change_neither_what_was_loaded_nor_what_was_read(causal_bundle: Bundle, generator: Generator) -> None:
    _, loaded = generator.prefill(make_ids(11))
    tokens = np.array([3])
    for decoder in open_decoders(causal_bundle):
        with decoder:
            decoder.load_state(loaded)
            read = [loaded, decoder.read_state()]
            logits = decoder.step(tokens)
            read.append(decoder.read_state())
            before = [value.copy() for state in read for value in state.tensors.values()]
            first = logits.copy()
            for _ in range(3):
                decoder.step(tokens)
            decoder.load_state(State.zeros(causal_bundle.get_graph("decode"), 1))
            after = [value for state in read for value in state.tensors.values()]
            assert all(map(np.array_equal, before, after))
            assert np.array_equal(logits, first)


# --- generation


def test_greedy_text_is_the_eager_model_s_token_for_token(generator: Generator, eager: Generator) -> None:
    prompts = make_ids(1, 8, 13, 24)
    options = SamplingOptions(max_tokens=30)
    actual, expected = generator.generate(prompts, options), eager.generate(prompts, options)
    assert [tokens.tolist() for tokens in actual.tokens] == [tokens.tolist() for tokens in expected.tokens]
    assert actual.state.position.tolist() == expected.state.position.tolist() == [31, 38, 43, 54]
    assert {tokens.dtype for tokens in actual.tokens} == {np.dtype(np.int64)}


def test_sampled_text_of_a_row_is_its_text_alone(generator: Generator) -> None:
    prompts = make_ids(5, 17, 1)
    options = SamplingOptions(0.9, 12, 0.95, 1.2, max_tokens=20, seed=40)
    together = generator.generate(prompts, options).tokens
    for row, prompt in enumerate(prompts):
        alone = generator.generate([prompt], dataclasses.replace(options, seed=40 + row)).tokens[0]
        assert alone.tolist() == together[row].tolist()
    assert len({tuple(tokens.tolist()) for tokens in together}) == 3


def test_rows_stop_at_their_own_stop_tokens(generator: Generator) -> None:
    prompts = make_ids(4, 9, 2, 15)
    free = generator.generate(prompts, SamplingOptions(1.0, max_tokens=25, seed=3)).tokens
    stops = {int(free[0][3]), int(free[2][10])}
    stopped = generator.generate(prompts, SamplingOptions(1.0, stop_tokens=tuple(stops), max_tokens=25, seed=3))
    for prompt, whole, tokens, position in zip(prompts, free, stopped.tokens, stopped.state.position, strict=True):
        hits = np.flatnonzero(np.isin(whole, list(stops)))
        assert tokens.tolist() == whole[: hits[0] + 1 if hits.size else None].tolist()
        assert position == prompt.size + tokens.size
    assert len({tokens.size for tokens in stopped.tokens}) > 1


def test_states_after_stops_go_on_like_one_text(generator: Generator, model: FlashModel) -> None:
    prompts = make_ids(4, 9, 2)
    first = generator.generate(prompts, SamplingOptions(1.0, stop_tokens=(3, 4, 5), max_tokens=12))
    ends = make_ids(10, 3, 1, seed=2)
    logits, _ = generator.prefill(ends, first.state)
    for row, pieces in enumerate(zip(prompts, first.tokens, ends, strict=True)):
        check_close(logits[row], compute_logits(model, np.concatenate(pieces))[-1])


def test_tokens_are_reported_as_they_are_chosen(generator: Generator) -> None:
    seen: list[tuple[int, int]] = []
    tokens = generator.generate(make_ids(3, 5), SamplingOptions(max_tokens=4), on_token=lambda *pair: seen.append(pair))
    assert seen == [(row, int(tokens.tokens[row][step])) for step in range(4) for row in range(2)]


def test_repetition_penalty_knows_the_prompt_and_the_new_tokens(generator: Generator, model: FlashModel) -> None:
    prompts, penalty = make_ids(3, 11), 1.7
    tokens = generator.generate(prompts, SamplingOptions(repetition_penalty=penalty, max_tokens=12)).tokens
    for prompt, written in zip(prompts, tokens, strict=True):
        text = prompt
        for token in written:
            scores = compute_logits(model, text)[-1]
            seen = np.unique(text)
            scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
            assert token == scores.argmax()
            text = np.append(text, token)


def test_no_tokens_read_the_prompt_alone(generator: Generator) -> None:
    result = generator.generate(make_ids(11), SamplingOptions(max_tokens=0))
    assert [tokens.tolist() for tokens in result.tokens] == [[]]
    assert result.state.position.tolist() == [11]


# --- states that go on


def test_saved_loaded_and_forked_states_go_on_identically(
    causal_bundle: Bundle, generator: Generator, tmp_path: Path
) -> None:
    system, *questions = make_ids(19, 4, 9, 1)
    whole = generator.generate([np.concatenate([system, question]) for question in questions]).tokens
    _, state = generator.prefill([system])
    state.save(tmp_path / "system.state")
    loaded = State.load(tmp_path / "system.state", causal_bundle)
    for cached in (state.fork(3), loaded.fork(3)):
        tokens = generator.generate(questions, state=cached).tokens
        assert [row.tolist() for row in tokens] == [row.tolist() for row in whole]


def test_states_that_come_out_name_their_model(causal_bundle: Bundle, generator: Generator) -> None:
    _, state = generator.prefill(make_ids(3))
    assert state.model_sha256 == identify_model(causal_bundle)
    result = generator.generate(make_ids(1), SamplingOptions(max_tokens=1), State(state.tensors))
    assert result.state.model_sha256 == identify_model(causal_bundle)


def test_eager_state_is_the_text_and_saved_like_any_other(
    causal_bundle: Bundle, eager: Generator, tmp_path: Path
) -> None:
    first, second = make_ids(5, 3)
    _, state = eager.prefill([first])
    state.save(tmp_path / "a.state")
    loaded = State.load(tmp_path / "a.state", causal_bundle)
    options = SamplingOptions(max_tokens=6)
    expected = eager.generate([np.concatenate([first, second])], options).tokens[0]
    assert eager.generate([second], options, loaded).tokens[0].tolist() == expected.tolist()


# --- bad input


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "there are no prompts; give at least one"),
        ([np.zeros(0, np.int64)], "prompt 0 has no tokens; give at least one"),
        ([np.zeros(1, np.int64), np.array([3, 29])], "prompt 1 has 29, token ids are 0 to 28 here; .*tokenizer"),
        ([np.array([-1, 29])], "prompt 0 has -1, token ids"),
        ([np.zeros(3, np.int32)], r"prompt 0 is int32 of shape \(3,\), wanted an int64 vector"),
        ([np.zeros(3)], "prompt 0 is float64"),
        ([np.zeros((1, 3), np.int64)], r"prompt 0 is int64 of shape \(1, 3\)"),
        ([np.zeros(1, np.int64)] * 65, "batch=65 exceeds the graph's maximum 64"),
    ],
)
def test_unusable_prompts_are_refused(generator: Generator, prompts: list[np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        generator.generate(prompts)


def test_segment_of_no_tokens_is_refused(generator: Generator) -> None:
    with pytest.raises(InputError, match="segment_len=0 is not usable"):
        generator.prefill(make_ids(3), segment_len=0)


def test_stop_token_outside_of_the_vocabulary_is_refused(generator: Generator) -> None:
    with pytest.raises(ConfigError, match=r"stop_tokens=\(29,\) are not usable; token ids are 0 to 28"):
        generator.generate(make_ids(3), SamplingOptions(stop_tokens=(29,)))


def test_states_that_do_not_fit_are_refused(generator: Generator, eager: Generator) -> None:
    _, state = generator.prefill(make_ids(3, 4))
    with pytest.raises(StateError, match="the state has a batch of 2, the run has 1; fork one row, or select some"):
        generator.prefill(make_ids(3), state)
    with pytest.raises(StateError, match="belongs to another model"):
        generator.prefill(make_ids(3, 4), State(state.tensors, "0" * 64))
    with pytest.raises(StateError, match=r"other tensors than the graph takes .*make it with the same backend"):
        eager.prefill(make_ids(3, 4), state)


def test_decoding_without_a_state_is_refused(causal_bundle: Bundle) -> None:
    for decoder in open_decoders(causal_bundle):
        with decoder:
            with pytest.raises(InputError, match="no state to decode from; prefill a prompt, or load a state first"):
                decoder.step(np.zeros(1, np.int64))
            with pytest.raises(InputError, match="no state to decode from"):
                decoder.read_state()


@pytest.mark.parametrize("odd", [-1, 29])
def test_step_of_an_id_outside_of_the_vocabulary_is_refused(causal_bundle: Bundle, odd: int) -> None:
    for decoder in open_decoders(causal_bundle):
        with decoder:
            decoder.load_state(State.zeros(causal_bundle.get_graph("decode"), 2))
            with pytest.raises(InputError, match=f"has {odd}, token ids are 0 to 28 here"):
                decoder.step(np.array([3, odd]))


def test_step_of_another_batch_is_refused(causal_bundle: Bundle) -> None:
    graph, path = causal_bundle.get_graph("decode"), causal_bundle.get_graph_path("decode")
    with OrtStateRunner(graph, path) as decoder:
        decoder.load_state(State.zeros(graph, 2))
        with pytest.raises(InputError, match=r"tokens have shape \(3,\), the state has a batch of 2"):
            decoder.step(np.zeros(3, np.int64))
        with pytest.raises(InputError, match="batch=65 exceeds the graph's maximum 64"):
            decoder.load_state(State.zeros(graph, 65))
        with pytest.raises(StateError, match="other tensors than the graph takes"):
            decoder.load_state(State({"position": np.zeros((2, 1), np.int64)}))


def test_text_too_long_for_the_eager_backend_is_refused(eager: Generator) -> None:
    with pytest.raises(InputError, match=r"seq_len=61 exceeds the bundle's maximum 60.*use ort-cpu"):
        eager.generate(make_ids(58), SamplingOptions(max_tokens=3))


def test_model_that_computes_nan_is_one_clear_error(causal_bundle: Bundle) -> None:
    model = causal_bundle.load_model()
    model.get_parameter("to_logits.1.bias").fill_(float("nan"))
    graph = describe_eager_graph(VOCAB_SIZE, causal_bundle.get_graph().axes)
    runner = EagerStateRunner(model, graph)
    broken = Generator(StateRunners(runner, RunnerDecoder(runner, graph), graph, chunk_size=1, model_sha256="x"))
    with pytest.raises(InputError, match="logits hold NaN or infinite values"):
        broken.generate(make_ids(3))


# --- opening


def make_bundle(path: Path, config: str, interface: Interface | None = None) -> Bundle:
    sizes = {"vocab_size": VOCAB_SIZE, "dim": 4, "depth": 1, "hidden_dim": 8}
    (path / "config.json").write_text(json.dumps(sizes | json.loads(config)))
    interface = interface or dataclasses.replace(INTERFACE, is_causal=json.loads(config).get("causal", True))
    axes: tuple[int | str, ...] = ("batch", "seq")
    graph = GraphSpec(
        "model.onnx",
        20,
        "fp32",
        (TensorSpec("input_ids", "int64", axes),),
        (TensorSpec("logits", "float32", (*axes, VOCAB_SIZE)),),
        {"batch": AxisRange(1, 4), "seq": AxisRange(1, 16)},
    )
    files = {"config.json": "a", "model.safetensors": "b", "model.onnx": "c"}
    return Bundle(path, Manifest({}, interface, {"forward": graph}, PROVENANCE, files))


@pytest.mark.parametrize(
    ("config", "backend", "message"),
    [
        ('{"model_type": "flash", "causal": false}', "ort-cpu", "is not causal: .* cannot generate"),
        ('{"model_type": "gau", "causal": false}', "eager", "is not causal: .* cannot generate"),
        ('{"model_type": "gau", "causal": true}', "ort-cpu", "FLASH-Quad divides .*every new token changes the whole"),
        (
            '{"model_type": "flash", "causal": true}',
            "ort-cpu",
            "has no graph prefill, extend, decode, but forward; export",
        ),
        ('{"model_type": "flash", "causal": true}', "trt", "has no graph prefill, extend, decode, but forward; export"),
    ],
)
def test_bundles_that_cannot_generate_say_why(tmp_path: Path, config: str, backend: str, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Generator.open(make_bundle(tmp_path, config), backend)


def test_missing_engines_are_named(causal_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="has no engine of prefill, extend, decode; build it with 'flash-export trt"):
        Generator.open(causal_bundle, "trt")


def test_engines_of_all_graphs_are_used(
    causal_bundle: Bundle, generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine keeps its graph's contract, so a stand-in for TensorRT computes what onnxruntime does."""
    made = [
        ("decode", "first"),
        ("decode", "second"),
        ("extend", "extend"),
        ("forward", "forward"),
        ("prefill", "prefill"),
    ]
    engines = [describe_engine(causal_bundle, graph, name) for graph, name in made]
    monkeypatch.setattr(Bundle, "list_engines", lambda _: engines)
    (tmp_path / "plan").write_bytes(b"plan")
    loaded: list[str] = []

    def load(bundle: Bundle, engine: EngineManifest, options: EngineOptions | None = None) -> LoadedEngine:
        loaded.append(engine.name)
        runner = OrtRunner(bundle.get_graph(engine.graph), bundle.get_graph_path(engine.graph), threads=1)
        monkeypatch.setitem(sys.modules, "tensorrt", Plan(engine, runner.run).make_module())
        return LoadedEngine(engine, tmp_path / "plan", HostDevice(), options)  # type: ignore[arg-type]

    monkeypatch.setattr("flash_export.runtime.trt.load_engine", load)
    prompts = make_ids(4, 17)
    with Generator.open(causal_bundle, "trt") as engine_generator:
        tokens = engine_generator.generate(prompts, SamplingOptions(max_tokens=9)).tokens
    expected = generator.generate(prompts, SamplingOptions(max_tokens=9)).tokens
    assert all(map(np.array_equal, tokens, expected))
    assert loaded == ["prefill", "extend", "second"]  # of several engines of a graph the last


def test_threads_below_one_are_refused(causal_bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="threads=0 is not usable; use at least 1"):
        Generator.open(causal_bundle, threads=0)


def test_unknown_backend_is_refused(causal_bundle: Bundle) -> None:
    with pytest.raises(
        ConfigError,
        match=r"unknown backend 'gpu'; use one of ort-cpu, ort-cuda, .*openvino, trt-network, trt, eager",
    ):
        Generator.open(causal_bundle, "gpu")


# --- any runners


class StrictPrefill(EagerStateRunner):
    """A prefill graph that insists on its contract."""

    lengths: list[list[int]]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert list(inputs) == ["input_ids", "lengths", "state.position", "state.tokens"]
        assert not (inputs["state.position"] % CHUNK_SIZE).any()
        assert inputs["lengths"].max() == inputs["input_ids"].shape[1]
        self.lengths.append(inputs["lengths"].tolist())
        return super().run(inputs)


class StrictExtend(EagerStateRunner):
    """An extend graph that insists on its contract."""

    lengths: list[list[int]]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert 1 < inputs["lengths"].max() == inputs["input_ids"].shape[1] <= CHUNK_SIZE
        self.lengths.append([-length for length in inputs["lengths"].tolist()])
        return super().run(inputs)


def make_strict(bundle: Bundle, batch: AxisRange, max_segment_len: int = 200) -> tuple[Generator, list[list[int]]]:
    """Return a generator, and the lengths of each run: below 0 those of extend."""
    axes = {"batch": batch, "seq": AxisRange(1, 200)}
    graph = describe_eager_graph(VOCAB_SIZE, axes)
    graph = dataclasses.replace(graph, axes={"batch": batch, "seq": AxisRange(1, max_segment_len)})
    model = bundle.load_model()
    prefill = StrictPrefill(model, graph)
    prefill.lengths = []
    extend = StrictExtend(model, dataclasses.replace(graph, axes={**axes, "seq": AxisRange(1, CHUNK_SIZE)}))
    extend.lengths = prefill.lengths
    decoder = RunnerDecoder(EagerStateRunner(model, graph), graph)
    return Generator(StateRunners(prefill, decoder, graph, CHUNK_SIZE, "model", extend)), prefill.lengths


def generate_twice(generator: Generator, texts: Sequence[np.ndarray]) -> list[list[int]]:
    _, state = generator.prefill([text[:3] for text in texts])
    options = SamplingOptions(1.0, stop_tokens=(1, 2, 3, 4), max_tokens=9)
    result: Any = generator.generate([text[3:] for text in texts], options, state)
    return [tokens.tolist() for tokens in result.tokens]


def test_segments_start_at_chunk_boundaries_and_blocks_anywhere(causal_bundle: Bundle) -> None:
    generator, lengths = make_strict(causal_bundle, AxisRange(1, 4))
    texts = make_ids(30, 5, 12)
    generator.prefill(texts, segment_len=21)
    assert lengths == [[-5], [16, 12], [14]]
    lengths.clear()
    _, state = generator.prefill([text[:3] for text in texts])
    generator.prefill([text[3:] for text in texts], state, segment_len=8)
    assert lengths == [[-3, -3, -3], [-5, -2, -5], [-4], [8], [8], [-6]]


def test_continuation_inside_a_chunk_is_one_run(causal_bundle: Bundle, model: FlashModel) -> None:
    generator, lengths = make_strict(causal_bundle, AxisRange(1, 4))
    (text,) = make_ids(30)
    _, state = generator.prefill([text[:19]])
    lengths.clear()
    _, state = generator.prefill([text[19:27]], state)
    assert lengths == [[-8]]
    _, state = generator.prefill([text[27:28]], state)  # a single token goes through decode
    logits, state = generator.prefill([text[28:]], state)
    assert lengths == [[-8], [-2]]
    check_close(logits[0], compute_logits(model, text)[-1])


def test_graph_whose_longest_sequence_is_below_a_chunk(causal_bundle: Bundle, model: FlashModel) -> None:
    generator, lengths = make_strict(causal_bundle, AxisRange(1, 4), max_segment_len=5)
    texts = make_ids(19, 3)
    logits, state = generator.prefill(texts)
    assert lengths == [[-3], [5], [-3], [5], [-6]]
    assert state.position.tolist() == [19, 3]
    check_close(logits[0], compute_logits(model, texts[0])[-1])


def test_graphs_of_one_fixed_batch_give_the_same_text(causal_bundle: Bundle) -> None:
    free, _ = make_strict(causal_bundle, AxisRange(1, 4))
    fixed, lengths = make_strict(causal_bundle, AxisRange(4, 4))
    texts = make_ids(30, 5, 12)
    assert generate_twice(fixed, texts) == generate_twice(free, texts)
    assert {len(counts) for counts in lengths} == {4}
    with pytest.raises(InputError, match="batch=5 exceeds the graph's maximum 4"):
        fixed.prefill(make_ids(1, 1, 1, 1, 1))


def test_causal_gau_generates_by_reading_the_text_again(tmp_path: Path) -> None:
    from flash_export.models.gau import GauConfig, GauModel

    torch.manual_seed(0)
    model = GauModel(GauConfig(VOCAB_SIZE, 12, 1, hidden_dim=16, qk_dim=8, causal=True)).eval()
    model.save_pretrained(tmp_path)
    bundle = make_bundle(tmp_path, (tmp_path / "config.json").read_text(), model.config.interface)
    prompts = make_ids(2, 6)
    with Generator.open(bundle, "eager") as generator, torch.inference_mode():
        tokens = generator.generate(prompts, SamplingOptions(max_tokens=5)).tokens
        for prompt, written in zip(prompts, tokens, strict=True):
            text = prompt
            for token in written:
                assert token == model(torch.from_numpy(text)[None])[0, -1].argmax()
                text = np.append(text, token)


def test_other_config_of_the_same_weights_is_another_model(generator: Generator, tmp_path: Path) -> None:
    _, state = generator.prefill(make_ids(3))
    state.save(tmp_path / "a.state")
    other = make_bundle(tmp_path, json.dumps(FlashConfig(VOCAB_SIZE, 22, 2, 33).to_dict()))
    with pytest.raises(StateError, match="belongs to another model"):
        State.load(tmp_path / "a.state", other)
