"""A text that is read in random pieces by all graphs with a carried state says what one pass over it says."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flash_export.config import DECODE, EXTEND, PREFILL
from flash_export.exporters.graphs import build_graph_module
from flash_export.exporters.lowering.flash_state import describe_state
from flash_export.exporters.lowering.registry import lower_model
from flash_export.models.flash import FlashConfig, FlashModel
from tests.exporters.lowering.test_lowering import RELATIVE_TOLERANCE, randomise

if TYPE_CHECKING:
    from torch import Tensor

    from flash_export.models.base import ReferenceModel

configs = st.builds(
    FlashConfig,
    vocab_size=st.just(23),
    depth=st.just(2),
    dim=st.sampled_from([4, 10, 34]),
    hidden_dim=st.sampled_from([3, 15, 51]),
    qk_dim=st.sampled_from([2, 20, 33, 64]),
    chunk_size=st.sampled_from([1, 2, 5, 8, 16, 17]),
    causal=st.just(True),
    norm_type=st.sampled_from(["scalenorm", "layernorm"]),
    shift_tokens=st.booleans(),
    attention_fn=st.sampled_from(["relu2", "laplace", "laplace_wide"]),
)


class Reader:
    """Reads a batch of texts by the modules that are traced, each row from where it is."""

    def __init__(self, model: ReferenceModel, config: FlashConfig, input_ids: Tensor) -> None:
        self.input_ids = input_ids
        lowered = lower_model(model)
        self.graphs = {name: build_graph_module(name, lowered) for name in (PREFILL, EXTEND, DECODE)}
        self.state = tuple(
            torch.zeros([int(size) for size in spec.shape], dtype=getattr(torch, spec.dtype))
            for spec in describe_state(config, len(input_ids), "")
        )
        self.logits = torch.full((*input_ids.shape, config.vocab_size), torch.nan)

    @property
    def position(self) -> Tensor:
        return self.state[0][:, 0]

    def read(self, graph: str, num_tokens: int, lengths: Tensor) -> None:
        """Keep what a run says of the first ``lengths`` tokens of each row, and the state after them."""
        where = self.position.unsqueeze(1) + torch.arange(num_tokens)
        ids = self.input_ids.gather(1, where.clamp(max=self.input_ids.shape[1] - 1))
        given_lengths = () if graph == DECODE else (lengths,)
        logits, self.state = self.graphs[graph](ids, *given_lengths, self.state)
        for row, length in enumerate(lengths.tolist()):
            self.logits[row, where[row, :length]] = logits[row, :length]


@settings(max_examples=60, deadline=None)
@given(configs, st.integers(1, 4), st.integers(0, 2**16), st.data())
def test_random_pieces_say_what_one_pass_says(config: FlashConfig, batch: int, seed: int, data: st.DataObject) -> None:
    model, chunk_size = randomise(FlashModel(config), seed), config.chunk_size
    seq_len = 4 * chunk_size + 3
    input_ids = torch.randint(0, 23, (batch, seq_len), generator=torch.Generator().manual_seed(seed))
    reader = Reader(model, config, input_ids)
    while (room := seq_len - int(reader.position.max())) > 0:
        fitting = [EXTEND, DECODE] if (reader.position % chunk_size).any() else [EXTEND, DECODE, PREFILL]
        graph = data.draw(st.sampled_from(fitting), "graph")
        most = {PREFILL: min(room, 2 * chunk_size), EXTEND: min(room, chunk_size), DECODE: 1}[graph]
        num_tokens = data.draw(st.integers(1, most), "tokens")
        least = {PREFILL: 1, EXTEND: 0, DECODE: 1}[graph]
        lengths = data.draw(st.lists(st.integers(least, num_tokens), min_size=batch, max_size=batch), "lengths")
        if not any(lengths):
            lengths[0] = num_tokens
        reader.read(graph, num_tokens, torch.tensor(lengths))
    read = torch.arange(seq_len) < reader.position.unsqueeze(1)
    expected = copy.deepcopy(model).double()(input_ids)
    error, noise = ((expected - found)[read].abs().max() for found in (reader.logits, model(input_ids)))
    assert error <= max(RELATIVE_TOLERANCE * expected[read].abs().max(), 4 * noise)


@settings(max_examples=20, deadline=None)
@given(configs, st.integers(0, 2**16), st.data())
def test_tokens_are_scored_without_being_taken_in(config: FlashConfig, seed: int, data: st.DataObject) -> None:
    """Rows of length 0 keep the whole state to the last bit; others are as if nothing stood behind their length."""
    model, chunk_size = randomise(FlashModel(config), seed), config.chunk_size
    input_ids = torch.randint(0, 23, (3, 3 * chunk_size), generator=torch.Generator().manual_seed(seed))
    start = data.draw(st.integers(0, 2 * chunk_size - 1), "start")
    num_tokens = data.draw(st.integers(1, chunk_size), "tokens")
    length = data.draw(st.integers(1, num_tokens), "length")
    reader = Reader(model, config, input_ids)
    for _ in range(start):
        reader.read(DECODE, 1, torch.ones(3, dtype=torch.long))
    before, ids = reader.state, input_ids[:, start : start + num_tokens]
    logits, after = reader.graphs[EXTEND](ids, torch.tensor([0, length, num_tokens]), before)
    other = ids.clone()
    other[1, length:] = (other[1, length:] + 1) % 23
    _, same = reader.graphs[EXTEND](other, torch.tensor([0, length, num_tokens]), before)
    for name, old, new, again in zip(
        (spec.name for spec in describe_state(config, 3, "")), before, after, same, strict=True
    ):
        assert torch.equal(new[0], old[0]), name
        assert torch.equal(new[1], again[1]), name
    expected = copy.deepcopy(model).double()(input_ids)[:, start : start + num_tokens]
    noise = (expected - model(input_ids)[:, start : start + num_tokens]).abs().max()
    assert (logits - expected).abs().max() <= max(RELATIVE_TOLERANCE * expected.abs().max(), 4 * noise)


@settings(max_examples=20, deadline=None)
@given(configs, st.integers(0, 2**16))
def test_prefill_that_starts_inside_a_chunk_gives_nan(config: FlashConfig, seed: int) -> None:
    model = randomise(FlashModel(config), seed)
    reader = Reader(model, config, torch.zeros((config.chunk_size + 1, 3), dtype=torch.long))
    reader.state[0][:, 0] = torch.arange(config.chunk_size + 1)
    logits, _ = reader.graphs[PREFILL](reader.input_ids, torch.full((config.chunk_size + 1,), 3), reader.state)
    is_nan = logits.isnan()
    assert is_nan[1:-1].all()
    assert not is_nan[[0, -1]].any()
