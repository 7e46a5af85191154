"""What needs no oracle: configs, promises, and what the multi-head models say of themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch

from flash_export.errors import CheckpointError, ConfigError, InputError
from flash_export.models.bigbird import NO_BLOCK, BigBirdConfig, draw_blocks
from flash_export.models.checkpoint import load_pretrained
from flash_export.models.linformer import LinformerConfig
from flash_export.models.longformer import LongformerConfig
from flash_export.models.mc_tfm import McTfmConfig
from flash_export.models.performer import CAUSAL_CHUNK, PerformerConfig, draw_features
from flash_export.models.transformer import TransformerConfig
from tests.models.macs import count_weight_macs
from tests.models.multihead_models import (
    CONFIGS,
    SIZES,
    VOCAB_SIZE,
    compute_error,
    make_batch,
    make_model,
    read_quantities,
)

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.models.multihead import MultiheadConfig

EXACT = 1e-12  # of the scale, in float64
CAUSAL = [name for name, config in CONFIGS.items() if config.causal]
BOUNDED = [name for name, config in CONFIGS.items() if config.has_max_len]


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_model_is_loaded_again(name: str, tmp_path: Path) -> None:
    model = make_model(CONFIGS[name])
    model.save_pretrained(tmp_path)
    again = load_pretrained(tmp_path)
    assert again.config == model.config
    inputs = make_batch([9, 4])
    torch.testing.assert_close(again(*inputs), model(*inputs), rtol=0, atol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_changes_no_row(name: str) -> None:
    model, lengths = make_model(CONFIGS[name]).double(), [33, 16, 8, 5, 1]
    assert model.config.interface.padding == "exact"
    assert model.config.interface.needs_mask == (not model.config.causal)
    input_ids, mask = make_batch(lengths)
    logits = model(input_ids, mask)
    other = model(torch.where(mask.bool(), input_ids, (input_ids + 1) % VOCAB_SIZE), mask)
    assert torch.equal(other[mask.bool()], logits[mask.bool()])
    for row, length in enumerate(lengths):
        alone = model(input_ids[row : row + 1, :length])[0]
        assert compute_error(alone, logits[row, :length]) <= EXACT


@pytest.mark.parametrize("name", CONFIGS)
def test_row_of_padding_alone_stays_finite_and_leaves_others_alone(name: str) -> None:
    model = make_model(CONFIGS[name])
    input_ids, mask = make_batch([9, 9, 9])
    mask[1] = 0
    logits = model(input_ids, mask)
    assert logits.isfinite().all()
    for row in (0, 2):
        assert compute_error(model(input_ids[row : row + 1])[0], logits[row]) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_half_reference_is_off_by_its_rounding(name: str, dtype: torch.dtype) -> None:
    """It is what validation takes PyTorch's own error from."""
    inputs = make_batch([33, 8, 1])
    valid, model = inputs[1].bool(), make_model(CONFIGS[name])
    expected = model(*inputs)[valid]
    error = compute_error(expected, model.to(dtype)(*inputs)[valid].float())
    assert 0 < error < 64 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", CONFIGS)
def test_later_tokens_change_earlier_ones_unless_the_model_is_causal(name: str) -> None:
    model = make_model(CONFIGS[name]).double()
    input_ids, _ = make_batch([33])
    for place in (32, 16, 1):
        changed = input_ids.clone()
        changed[0, place] = (input_ids[0, place] + 1) % VOCAB_SIZE
        before = compute_error(model(input_ids)[0, :place], model(changed)[0, :place])
        assert before <= EXACT if name in CAUSAL else before > 1e-6
    # Without a mask, a causal row is the same whatever follows.
    if name in CAUSAL:
        assert compute_error(model(input_ids[:, :9]), model(input_ids)[:, :9]) <= EXACT


@pytest.mark.parametrize("name", CONFIGS)
def test_one_token_attends_to_itself(name: str) -> None:
    """Its values are what is mixed; in a Linformer, those of each head times a mean of what it is projected by."""
    model = make_model(replace(CONFIGS[name], depth=1)).double()
    readings = read_quantities(model, torch.tensor([[3]]))
    value, mixed = readings["layers.0.value"], readings["layers.0.mixed"]
    if "linformer" in name:
        factors = (mixed / value).unflatten(-1, (model.config.num_heads, -1))
        assert compute_error(factors[..., :1].expand_as(factors), factors) <= EXACT
        assert compute_error(value, mixed) > 0.01
    elif name == "mc_tfm":  # the linear part is there as well
        assert compute_error(value, mixed) > 0.01
    else:
        assert compute_error(value, mixed) <= EXACT


@pytest.mark.parametrize("name", CONFIGS)
def test_probes_read_the_quantities_in_order(name: str) -> None:
    model = make_model(CONFIGS[name])
    names = list(read_quantities(model, torch.tensor([[1, 2]])))
    first, *inner = model.config.quantities
    assert names == [first, *(f"layers.{index}.{one}" for index in range(2) for one in inner)]


def count_between_tokens(config: MultiheadConfig, seq_len: int) -> int:
    """Return the multiplications of one block between what is no weight, or a weight of the attention's own."""
    heads, width = config.num_heads, config.head_dim
    if isinstance(config, PerformerConfig):
        features = config.num_features
        padded = seq_len if not config.causal else -(-seq_len // CAUSAL_CHUNK) * CAUSAL_CHUNK
        by_weights = 2 * padded * heads * width * features
        sums = 2 * padded * heads * features * width
        pairs = padded * CAUSAL_CHUNK * heads * (features + width) if config.causal else 0
        return by_weights + sums + pairs
    if isinstance(config, LinformerConfig):
        return 4 * seq_len * heads * width * config.num_projected
    size = config.window
    padded = -(-seq_len // size) * size
    if isinstance(config, McTfmConfig):
        return padded * heads * width * 2 * (size + width)
    if isinstance(config, LongformerConfig):
        return padded * heads * width * 2 * (2 if config.causal else 3) * size
    if isinstance(config, BigBirdConfig):
        seen = config.num_random + (3 if config.causal else 5)
        full = 0 if config.causal else 2 * size  # tokens that attend to all
        return padded * heads * width * 2 * seen * size + 2 * full * padded * heads * width
    return 2 * seq_len**2 * heads * width


@pytest.mark.parametrize("seq_len", [1, 8, 21])
@pytest.mark.parametrize("name", CONFIGS)
def test_macs_are_those_of_the_products(name: str, seq_len: int) -> None:
    config = CONFIGS[name]
    counted = count_weight_macs(make_model(config), torch.zeros(1, seq_len, dtype=torch.long))
    assert config.count_macs(seq_len) == counted + config.depth * count_between_tokens(config, seq_len)
    assert config.estimate_bytes(2, seq_len) == 2 * config.estimate_bytes(1, seq_len) > 0


def count_attention_parameters(config: MultiheadConfig) -> int:
    if isinstance(config, McTfmConfig):
        return 4 * config.dim  # two affine maps of each head
    if isinstance(config, LinformerConfig):
        return (1 if config.shares_kv else 2) * config.max_positions * config.num_projected
    return 0  # what is drawn is not trained


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_config(name: str) -> None:
    config = CONFIGS[name]
    norm = 1 if config.norm_type == "scalenorm" else 2 * config.dim
    hidden = config.ff_dim * (1 if config.ff_type == "mlp" else 2)
    block = 4 * config.dim * (config.dim + 1) + 2 * norm + hidden * (config.dim + 1) + (config.ff_dim + 1) * config.dim
    around = VOCAB_SIZE * config.dim + 2 * config.dim + (config.dim + 1) * VOCAB_SIZE
    positions = {"learnt": config.max_positions * config.dim, "sinusoid": 1, "rotary": 0}[config.positions]
    expected = around + positions + config.depth * (block + count_attention_parameters(config))
    assert make_model(config).count_parameters() == expected


@pytest.mark.parametrize("name", CONFIGS)
def test_state_is_refused_with_its_reason(name: str) -> None:
    config = CONFIGS[name]
    if config.causal and config.model_type == "transformer":
        assert config.state_refusal is None
    else:
        reason = "is exported for whole sequences alone" if config.causal else "it is not causal"
        assert reason in (config.state_refusal or "")


@pytest.mark.parametrize("name", BOUNDED)
def test_longest_sequence_is_that_of_the_positions(name: str) -> None:
    config = replace(CONFIGS[name], max_positions=12)
    model = make_model(config)
    assert config.interface.max_len == 12
    assert model(make_batch([12])[0]).isfinite().all()
    with pytest.raises(InputError, match="seq_len=13 exceeds the 12 positions of the model; shorten it"):
        model(make_batch([13])[0])


def test_other_models_have_no_longest_sequence() -> None:
    for name in CONFIGS.keys() - set(BOUNDED):
        assert CONFIGS[name].interface.max_len is None
        assert replace(CONFIGS[name], positions="learnt").interface.max_len == CONFIGS[name].max_positions


def test_features_are_orthogonal_in_blocks_and_drawn_by_seed() -> None:
    features = draw_features(11, 4, seed=1)
    assert features.shape == (11, 4)
    assert torch.equal(features, draw_features(11, 4, seed=1))
    assert not torch.equal(features, draw_features(11, 4, seed=2))
    for block in features.split(4):
        products = block @ block.mT
        assert compute_error(products.diagonal().diag(), products) < 1e-6
    layers = make_model(CONFIGS["performer"]).layers
    drawn = [cast("torch.Tensor", layer.get_submodule("attention").projection) for layer in layers]
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("causal", [False, True])
def test_drawn_blocks_are_none_that_are_seen_anyhow(causal: bool) -> None:
    config = replace(CONFIGS["bigbird"], causal=causal)
    assert isinstance(config, BigBirdConfig)
    table = draw_blocks(config, seed=1)
    assert table.shape == (20, config.num_random)
    assert torch.equal(table, draw_blocks(config, seed=1))
    for block, drawn in enumerate(table.tolist()):
        there = [other for other in drawn if other != NO_BLOCK]
        assert len(set(there)) == len(there)
        assert all(other > 0 and abs(other - block) > 1 for other in there)
        if causal:
            assert all(other < block for other in there)
            assert len(there) == min(config.num_random, max(block - 2, 0))
        else:
            assert len(there) == config.num_random  # of 7 candidates at least, 3 of which are the window


@pytest.mark.parametrize(
    ("causal", "odd", "wanted"),
    [(True, 3.0, "earlier ones, as the model is causal"), (False, 99.0, "0 to "), (False, 1.5, "0 to ")],
)
def test_drawn_blocks_that_cannot_be_are_refused(tmp_path: Path, causal: bool, odd: float, wanted: str) -> None:
    (config,) = (one for one in CONFIGS.values() if isinstance(one, BigBirdConfig) and one.causal == causal)
    model = make_model(config)
    with torch.no_grad():
        model.get_buffer("layers.1.attention.random_blocks")[2, 0] = odd
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=f"random_blocks has {odd:g} for block 2, wanted {wanted}"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ("transformer", {"num_heads": 5}, "dim=24 cannot be shared between num_heads=5; use a multiple"),
        ("longformer", {"dim": 15, "num_heads": 3}, "dim=15 is odd; the sinusoidal position embedding needs an even"),
        ("transformer++", {"num_heads": 8}, "dim=24 and num_heads=8 make heads of 3 channels; .* use an even number"),
        ("mc_tfm", {"ff_type": "relu"}, "ff_type='relu' is unknown; use one of mlp, swiglu, geglu"),
        ("mc_tfm", {"chunk_size": 0}, "chunk_size=0 is not usable"),
        ("performer", {"positions": "alibi"}, "positions='alibi' is unknown; use one of sinusoid, learnt, rotary"),
        ("performer", {"num_features": 1.5}, "num_features=1.5 is not usable; use a whole number"),
        ("linformer", {"causal": True}, "causal=True is not usable: .* use false, or family performer"),
        ("linformer", {"shares_kv": 1}, "shares_kv=1 is not a boolean"),
        ("longformer", {"attention_window": 8}, "unknown config field attention_window for model_type 'longformer'"),
        ("bigbird", {"max_positions": 81}, "max_positions=81 is no multiple of block_size=4; use one"),
        ("transformer", {"norm_type": "rmsnorm"}, "norm_type='rmsnorm' is unknown; use one of layernorm, scalenorm"),
    ],
)
def test_unusable_configs_are_refused(config: str, changes: dict[str, Any], message: str) -> None:
    values = CONFIGS[config].to_dict()
    with pytest.raises(ConfigError, match=message):
        type(CONFIGS[config]).from_dict({**values, **changes})


def test_defaults_are_those_of_a_usable_model() -> None:
    for kind in (TransformerConfig, McTfmConfig, PerformerConfig, LinformerConfig, LongformerConfig, BigBirdConfig):
        config = kind.from_dict(SIZES)
        assert make_model(config)(make_batch([3])[0]).shape == (1, 3, VOCAB_SIZE)
