"""A state that grows with the text: room is reserved before it is needed, wherever the state is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from flash_export.bundle.manifest import AxisRange, GraphSpec
from flash_export.config import DECODE, PREFILL, ExportOptions
from flash_export.errors import BundleError, StateError
from flash_export.exporters.export import export_onnx
from flash_export.generation.batcher import Batcher
from flash_export.generation.decoder import RunnerDecoder
from flash_export.generation.generate import Generator
from flash_export.generation.ort_state import OrtStateRunner
from flash_export.generation.sampling import SamplingOptions
from flash_export.generation.state import State, check_state
from flash_export.interface import PAST, TensorSpec
from flash_export.models.transformer import TransformerConfig, TransformerModel
from flash_export.runtime.ort import OrtRunner

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle

VOCAB_SIZE, MAX_LEN = 23, 64
CONFIG = TransformerConfig(
    vocab_size=VOCAB_SIZE, dim=16, depth=2, num_heads=2, ff_dim=24, positions="rotary", causal=True
)
STATE = (TensorSpec("state.position", "int64", ("batch", 1)), TensorSpec("state.0.k", "float32", ("batch", 2, PAST, 3)))
GRAPH = GraphSpec(
    "decode.onnx",
    20,
    "fp32",
    (TensorSpec("input_ids", "int64", ("batch", 1)), *STATE),
    (TensorSpec("logits", "float32", ("batch", 1, 5)),),
    {"batch": AxisRange(1, 4), PAST: AxisRange(1, 10)},
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(0)
    model = TransformerModel(CONFIG)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("growing")
    model.save_pretrained(folder / "model")
    return export_onnx(folder / "model", folder / "bundle", options=ExportOptions(max_seq_len=MAX_LEN, max_batch=8))


@pytest.fixture(scope="module")
def texts() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, VOCAB_SIZE, length) for length in (40, 17, 31)]


def compute_next(bundle: Bundle, texts: Sequence[np.ndarray]) -> np.ndarray:
    """Return what one pass of the eager model says after each text."""
    model = bundle.load_model()
    return np.stack([model(torch.from_numpy(text)[None])[0, -1].detach().numpy() for text in texts])


def check_close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# --- the state alone


def test_room_is_doubled_up_to_what_the_graph_takes() -> None:
    state = State.zeros(GRAPH, 2)
    assert state.num_places == 1
    assert state.reserve(GRAPH, 1) is state
    grown = state.reserve(GRAPH, 4)
    assert [grown.num_places, grown.reserve(GRAPH, 5).num_places, grown.reserve(GRAPH, 9).num_places] == [4, 8, 9]
    assert grown.tensors["0.k"].shape == (2, 2, 4, 3)
    assert grown.reserve(GRAPH, 5).reserve(GRAPH, 9).num_places == 10


def test_a_state_of_constant_size_has_room_for_any() -> None:
    state = State({"position": np.array([[10**6]])})
    assert state.num_places is None
    assert state.reserve(GRAPH, 10**6) is state


def test_what_was_written_stays_where_it_is() -> None:
    keys = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)
    state = State({"position": np.array([[2]]), "0.k": keys}, growing={"0.k": 2}).reserve(GRAPH, 1)
    np.testing.assert_array_equal(state.tensors["0.k"][:, :, :2], keys)
    assert not state.tensors["0.k"][:, :, 2:].any()


def test_a_text_that_is_too_long_is_one_clear_error() -> None:
    with pytest.raises(StateError, match=r"the text has 11 tokens, decode.onnx takes 10 at most; .*--max-seq-len 11"):
        State.zeros(GRAPH, 1).reserve(GRAPH, 11)


def test_too_few_places_are_refused() -> None:
    keys = np.zeros((1, 2, 4, 3), np.float32)
    with pytest.raises(StateError, match="the state has 4 places for 5 tokens"):
        State({"position": np.array([[5]]), "0.k": keys}, growing={"0.k": 2})


def test_a_state_of_any_room_fits_the_graph_and_one_of_other_heads_does_not() -> None:
    for num_tokens in (1, 7):
        check_state(State.zeros(GRAPH, 2).reserve(GRAPH, num_tokens), GRAPH, batch=2, model_sha256="x")
    other = State(
        {"position": np.zeros((2, 1), np.int64), "0.k": np.zeros((2, 3, 4, 3), np.float32)}, growing={"0.k": 2}
    )
    with pytest.raises(StateError, match=r"0.k of the state is float32 \(2, 3, 4, 3\)"):
        check_state(other, GRAPH, batch=2, model_sha256="x")


def test_rows_of_states_of_different_room_go_together() -> None:
    long = State.zeros(GRAPH, 3).reserve(GRAPH, 8)
    short = State({"position": np.array([[2]]), "0.k": np.ones((1, 2, 2, 3), np.float32)}, growing={"0.k": 2})
    for state in (long.replace([1], short), State.zeros(GRAPH, 3).replace([1], short.reserve(GRAPH, 6))):
        assert state.num_places == 8
        assert state.position.tolist() == [0, 2, 0]
        assert state.tensors["0.k"].sum() == 12
    with pytest.raises(StateError, match="of another model"):
        long.replace([0], State({**short.tensors, "0.k": np.zeros((1, 3, 2, 3), np.float32)}, growing={"0.k": 2}))


# --- decoders and generation


@pytest.mark.parametrize("kind", [OrtStateRunner, RunnerDecoder])
def test_decoders_grow_on_the_way(bundle: Bundle, texts: list[np.ndarray], kind: Any) -> None:
    graph, path = bundle.get_graph(DECODE), bundle.get_graph_path(DECODE)
    decoder = OrtStateRunner(graph, path) if kind is OrtStateRunner else RunnerDecoder(OrtRunner(graph, path), graph)
    with decoder:
        decoder.load_state(State.zeros(graph, 1, model_sha256="x"))
        for token in texts[0]:
            logits = decoder.step(np.array([token]))
        state = decoder.read_state()
        assert (state.position.tolist(), state.num_places) == ([40], 64)
        check_close(logits, compute_next(bundle, texts[:1]))
        for _ in range(MAX_LEN - 40):
            decoder.step(texts[0][:1])
        with pytest.raises(StateError, match=f"the text has {MAX_LEN + 1} tokens, decode.onnx takes {MAX_LEN} at most"):
            decoder.step(texts[0][:1])


@pytest.mark.parametrize("segment_len", [3, 2048])
@pytest.mark.parametrize("backend", ["ort-cpu", "eager"])
def test_prompts_of_any_lengths(bundle: Bundle, texts: list[np.ndarray], backend: str, segment_len: int) -> None:
    with Generator.open(bundle, backend) as generator:
        logits, state = generator.prefill(texts, segment_len=segment_len)
        check_close(logits, compute_next(bundle, texts))
        check_close(
            generator.prefill([text[:5] for text in texts], state, segment_len=segment_len)[0],
            compute_next(bundle, [np.concatenate((text, text[:5])) for text in texts]),
        )


def test_rows_that_stop_leave_the_others_as_they_are(bundle: Bundle, texts: list[np.ndarray]) -> None:
    """What rows write together, each until it stops, is what each writes alone, and by reading the text again."""
    options = SamplingOptions(temperature=0.0, stop_tokens=(1, 2, 3, 4, 5), max_tokens=20)
    with Generator.open(bundle) as generator, Generator.open(bundle, "eager") as eager:
        together = generator.generate(texts, options)
        alone = [generator.generate([text], options).tokens[0].tolist() for text in texts]
        again = eager.generate(texts, options)
        assert [one.tolist() for one in together.tokens] == alone == [one.tolist() for one in again.tokens]
        assert len({len(one) for one in alone}) > 1
        whole = [np.concatenate((text, tokens, text[:2])) for text, tokens in zip(texts, together.tokens, strict=True)]
        logits, _ = generator.prefill([text[:2] for text in texts], together.state)
    check_close(logits, compute_next(bundle, whole))


def test_a_fork_and_a_saved_state_go_on_alike(bundle: Bundle, texts: list[np.ndarray], tmp_path: Path) -> None:
    first, *rest = texts
    with Generator.open(bundle) as generator:
        _, state = generator.prefill([first[:20]])
        state.save(tmp_path / "text.state")
        loaded = State.load(tmp_path / "text.state", bundle)
        assert loaded.growing == state.growing
        assert loaded.num_places == state.num_places
        logits, _ = generator.prefill(rest, loaded.fork(2))
    check_close(logits, compute_next(bundle, [np.concatenate((first[:20], text)) for text in rest]))


def test_graphs_of_one_fixed_batch(texts: list[np.ndarray], bundle: Bundle, tmp_path: Path) -> None:
    fixed = export_onnx(bundle.path, tmp_path / "fixed", options=ExportOptions(max_seq_len=MAX_LEN, batch=4))
    assert fixed.get_graph(PREFILL).axes["batch"] == AxisRange(4, 4)
    with Generator.open(fixed) as generator:
        logits, state = generator.prefill(texts)
        result = generator.generate([text[:1] for text in texts], SamplingOptions(max_tokens=5), state)
    check_close(logits, compute_next(bundle, texts))
    assert [one.size for one in result.tokens] == [5, 5, 5]


def test_it_is_refused_where_memory_has_to_be_known_beforehand(bundle: Bundle) -> None:
    with Generator.open(bundle, threads=1) as generator, pytest.raises(BundleError, match="grows with the text"):
        Batcher(generator, 2)
