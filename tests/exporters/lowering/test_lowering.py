"""The lowered model is the reference model: in PyTorch, before anything is traced."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, cast

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flash_export.exporters.lowering.fold import order_rotary_columns
from flash_export.exporters.lowering.heads import Rotary, order_rotary_pairs
from flash_export.exporters.lowering.registry import lower_model
from flash_export.layers.position import RotaryEmbedding
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.gau import GauConfig, GauModel

if TYPE_CHECKING:
    from flash_export.models.base import ReferenceModel
    from flash_export.models.flash import FlashLayer

RELATIVE_TOLERANCE = 1e-5  # of the output's scale: fp32 rounding in another order

dialects = st.fixed_dictionaries(
    {
        "causal": st.booleans(),
        "norm_type": st.sampled_from(["scalenorm", "layernorm"]),
        "attention_fn": st.sampled_from(["relu2", "laplace", "laplace_wide"]),
        "mask_divisor": st.sampled_from(["valid", "padded"]),
        "qk_dim": st.sampled_from([2, 20, 33, 37, 64]),
        "dim": st.sampled_from([2, 10, 34]),
        "hidden_dim": st.sampled_from([3, 15, 51]),
    }
)
flash_configs = st.builds(
    lambda dialect, chunk_size, shift, total: FlashConfig(
        vocab_size=23, depth=2, chunk_size=chunk_size, shift_tokens=shift, sum_over_chunks=total, **dialect
    ),
    dialects,
    st.sampled_from([1, 2, 5, 16, 17]),
    st.booleans(),
    st.booleans(),
)
gau_configs = st.builds(lambda dialect: GauConfig(vocab_size=23, depth=2, **dialect), dialects)


def randomise(model: ReferenceModel, seed: int) -> ReferenceModel:
    """Give every weight, norms and biases too, a value that matters."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.requires_grad_(requires_grad=False).eval()


def assert_same_function(model: ReferenceModel, batch: int, seq_len: int, masked: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(0, 23, (batch, seq_len), generator=generator)
    lengths = torch.randint(1, seq_len + 1, (batch, 1), generator=generator)
    mask = (torch.arange(seq_len) < lengths).long() if masked else None
    eager, actual = model(input_ids, mask), lower_model(model)(input_ids, mask)
    expected = copy.deepcopy(model).double()(input_ids, mask)
    valid = mask.bool() if mask is not None else torch.ones(batch, seq_len, dtype=torch.bool)
    error, noise = ((expected - found)[valid].abs().max() for found in (actual, eager))
    # A norm over two channels that nearly cancel makes much of rounding, here and there, by chance more or less.
    assert error <= max(RELATIVE_TOLERANCE * expected[valid].abs().max(), 4 * noise)


@settings(max_examples=50, deadline=None)
@given(flash_configs, st.integers(1, 3), st.integers(1, 40), st.booleans(), st.integers(0, 2**16))
def test_lowered_flash_is_the_reference(config: FlashConfig, batch: int, seq_len: int, masked: bool, seed: int) -> None:
    assert_same_function(randomise(FlashModel(config), seed), batch, seq_len, masked, seed)


@settings(max_examples=25, deadline=None)
@given(gau_configs, st.integers(1, 3), st.sampled_from([1, 2, 9, 130, 300]), st.booleans(), st.integers(0, 2**16))
def test_lowered_gau_is_the_reference(config: GauConfig, batch: int, seq_len: int, masked: bool, seed: int) -> None:
    assert_same_function(randomise(GauModel(config), seed), batch, seq_len, masked, seed)


def test_weights_scaled_to_extremes_keep_hidden_scores_hidden() -> None:
    config = FlashConfig(vocab_size=23, dim=8, depth=1, hidden_dim=16, chunk_size=4, qk_dim=4, causal=True)
    model = randomise(FlashModel(config), 0)
    for parameter in model.parameters():
        parameter.data *= 8
    largest: list[float] = []
    for layer in cast("list[FlashLayer]", model.layers):
        layer.to_out.register_forward_hook(lambda _, __, output: largest.append(float(output.abs().max())))
    assert_same_function(model, 2, 11, masked=False, seed=1)
    assert largest[0] > 1e6


@given(st.integers(1, 16), st.integers(0, 40), st.integers(0, 10_000))
@settings(deadline=None)
def test_rotary_order_is_rope_up_to_a_permutation(pairs: int, rest: int, position: int) -> None:
    qk_dim = 2 * pairs + rest
    rotary = RotaryEmbedding(qk_dim)
    rotary_dim = 2 * len(rotary.freqs)
    x = torch.linspace(-2, 3, qk_dim)[None, None]
    columns, signs = order_rotary_columns(qk_dim, rotary_dim)
    extended = x[0, 0, columns] * signs
    angles = torch.cat((rotary.freqs, rotary.freqs)) * position
    rotated = extended[:rotary_dim] * angles.cos() + extended[qk_dim:] * angles.sin()
    expected = rotary(x, torch.tensor([position]))[0, 0][columns[:qk_dim]]
    torch.testing.assert_close(torch.cat((rotated, extended[rotary_dim:qk_dim])), expected, rtol=1e-5, atol=1e-5)


@given(st.integers(1, 16), st.integers(0, 40), st.integers(0, 10_000))
@settings(deadline=None)
def test_rotary_pairs_turn_as_rope_does(pairs: int, rest: int, position: int) -> None:
    qk_dim = 2 * pairs + rest
    rotary = RotaryEmbedding(qk_dim)
    rotary_dim = 2 * len(rotary.freqs)
    x = torch.linspace(-2, 3, qk_dim)[None, None]
    order = order_rotary_pairs(qk_dim, rotary_dim)
    turns = Rotary(rotary.freqs, qk_dim, 1)(torch.tensor([[[float(position)]]]), x)
    crossed = (x[..., order.columns] @ order.crossing) * turns.sin
    if turns.rest is not None:
        crossed = torch.cat((crossed, turns.rest), dim=-1)
    expected = rotary(x, torch.tensor([position]))[..., order.columns]
    torch.testing.assert_close(x[..., order.columns] * turns.cos + crossed, expected, rtol=1e-5, atol=1e-5)
