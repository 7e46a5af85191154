"""The references of the multi-head models against their formulas, in float64: no library has all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flash_export.models.bigbird import BigBirdConfig
from tests.models.multihead_formulas import compute_logits
from tests.models.multihead_models import CONFIGS, change_config, compute_error, make_batch, make_model

if TYPE_CHECKING:
    from flash_export.models.multihead import MultiheadConfig

RELATIVE_TOLERANCE = 1e-9
LENGTHS = (1, 3, 5, 7, 9, 15, 17, 33, 63, 79)  # one token; around the chunks of 4 and 8; the last but one position


def check_rows(config: MultiheadConfig, lengths: list[int], seed: int) -> None:
    """Compare every row of a padded batch with the formula of that row alone."""
    model = make_model(config, seed).double()
    input_ids, mask = make_batch(lengths, seed)
    logits = model(input_ids, mask)
    assert logits.dtype == torch.float64
    for row, length in enumerate(lengths):
        expected = torch.from_numpy(compute_logits(model, input_ids[row, :length].tolist()))
        assert expected.abs().max() > 0.1
        assert compute_error(expected, logits[row, :length]) <= RELATIVE_TOLERANCE, f"row {row} of {length} tokens"


@pytest.mark.parametrize("name", CONFIGS)
def test_model_is_its_formula_at_every_length(name: str) -> None:
    for length in LENGTHS:
        check_rows(CONFIGS[name], [length], seed=length)


@settings(max_examples=60)
@given(
    name=st.sampled_from(sorted(CONFIGS)),
    positions=st.sampled_from(("sinusoid", "learnt", "rotary")),
    ff_type=st.sampled_from(("mlp", "swiglu", "geglu")),
    norm_type=st.sampled_from(("layernorm", "scalenorm")),
    num_heads=st.sampled_from((1, 2, 6)),
    size=st.sampled_from((1, 4, 5, 8)),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    seed=st.integers(0, 2**16),
)
def test_rows_of_padded_batches_are_the_formula_of_each_alone(
    name: str, size: int, lengths: list[int], seed: int, **parts: Any
) -> None:
    check_rows(change_config(name, size, depth=1, **parts), lengths, seed)


@pytest.mark.parametrize("causal", [False, True])
def test_drawn_blocks_are_seen_and_no_others(causal: bool) -> None:
    """A model of one block and one drawn block to a block: what is drawn changes the answer as the formula has it."""
    config = replace(CONFIGS["bigbird"], causal=causal, depth=1)
    assert isinstance(config, BigBirdConfig)
    logits = []
    for seed in (1, 2):
        one = replace(config, block_seed=seed, num_random=1)
        check_rows(one, [79], seed=0)
        logits.append(make_model(one)(make_batch([79])[0]))
    assert (logits[0] - logits[1]).abs().max() > 0.01
