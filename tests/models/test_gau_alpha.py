from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from flash_export.errors import ConfigError
from flash_export.models.checkpoint import load_pretrained
from flash_export.models.gau_alpha import (
    MASK_DIALECTS,
    GauAlphaConfig,
    GauAlphaModel,
    compute_frequencies,
    compute_length_scale,
    normalise,
    turn_pairs,
)
from tests.models.macs import count_weight_macs

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = GauAlphaConfig(vocab_size=17, dim=8, depth=2, hidden_dim=12, qk_dim=6)


def make_model(config: GauAlphaConfig) -> GauAlphaModel:
    torch.manual_seed(0)
    model = GauAlphaModel(config).requires_grad_(requires_grad=False).eval()
    for parameter in model.parameters():
        parameter.copy_(torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("dialect", MASK_DIALECTS)
def test_saved_model_is_loaded_again(dialect: str, tmp_path: Path) -> None:
    model = make_model(replace(CONFIG, mask_dialect=dialect))
    model.save_pretrained(tmp_path)
    again = load_pretrained(tmp_path)
    assert again.config == model.config
    input_ids, mask = torch.tensor([[3, 4, 5], [6, 7, 8]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    torch.testing.assert_close(again(input_ids, mask), model(input_ids, mask), rtol=0, atol=0)


def test_only_sound_dialects_promise_rows_that_are_exact_under_padding() -> None:
    """What a library's mask lets through shows where the scale is 0: at one token."""
    input_ids, mask = torch.tensor([[3, 4, 5], [6, 7, 8]]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    for name in MASK_DIALECTS:
        model = make_model(replace(CONFIG, mask_dialect=name)).double()
        padded = model(input_ids, mask)
        two = (padded[0, :2] - model(input_ids[:1, :2])[0]).abs().max()
        one = (padded[1, :1] - model(input_ids[1:, :1])[0]).abs().max()
        assert two < 1e-12
        is_exact = model.config.interface.padding == "exact"
        assert (one < 1e-12) == is_exact == (name in ("exact", "bert4keras"))


def test_short_rows_are_scaled_as_if_longer_in_bert4keras() -> None:
    input_ids = torch.randint(0, 17, (1, 16))
    ours, keras = make_model(CONFIG), make_model(replace(CONFIG, mask_dialect="bert4keras"))
    torch.testing.assert_close(ours(input_ids), keras(input_ids), rtol=0, atol=0)
    assert (ours(input_ids[:, :5]) - keras(input_ids[:, :5])).abs().max() > 1e-3


def test_row_of_padding_alone_stays_finite_and_leaves_others_alone() -> None:
    model = make_model(CONFIG)
    input_ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
    logits = model(input_ids, torch.tensor([[1, 1, 1], [0, 0, 0]]))
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[:1], model(input_ids[:1]), rtol=1e-5, atol=1e-5)


def test_length_scale_is_1_at_512_tokens_and_0_at_one() -> None:
    scale = compute_length_scale(torch.tensor([[1], [512], [512**2]]), min_len=1)
    assert scale.shape == (3, 1, 1)
    torch.testing.assert_close(scale.flatten(), torch.tensor([0.0, 1.0, 2.0]).double())
    floored = compute_length_scale(torch.tensor([[1], [16], [32]]), min_len=16).flatten()
    torch.testing.assert_close(floored, torch.tensor([4.0, 4.0, 5.0]).double() / 9)


def test_turning_keeps_lengths_and_products_go_by_distance() -> None:
    torch.testing.assert_close(compute_frequencies(4), torch.tensor([1.0, 0.01]))
    x = torch.randn(1, 1, 6, dtype=torch.float64).expand(1, 9, 6)
    turned = turn_pairs(x)
    torch.testing.assert_close(turned[0, 0], torch.cat((x[0, 0, 0::2], x[0, 0, 1::2])))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    products = turned[0] @ turned[0].T
    torch.testing.assert_close(products.diagonal(3), products[0, 3].expand(6), rtol=0, atol=1e-5)


def test_norm_makes_the_mean_square_1_unless_there_is_nothing() -> None:
    x = torch.tensor([[3.0, -4.0], [0.0, 0.0], [1e-6, 1e-6]]).double()
    expected = torch.tensor([[3 / 12.5**0.5, -4 / 12.5**0.5], [0, 0], [0.5**0.5, 0.5**0.5]]).double()
    torch.testing.assert_close(normalise(x), expected)


def test_probes_read_the_quantities_in_order() -> None:
    names: list[str] = []
    model = make_model(CONFIG)
    with model.read_probes(lambda name, _: names.append(name)):
        model(torch.tensor([[1, 2]]))
    assert names[0] == "embedding"
    assert [name.removeprefix("layers.1.") for name in names[-8:]] == list(CONFIG.quantities)[1:]


def test_macs_are_those_of_the_products() -> None:
    counted = count_weight_macs(make_model(CONFIG), torch.zeros(1, 5, dtype=torch.long))
    between_tokens = 2 * 5 * 5 * (CONFIG.qk_dim + CONFIG.hidden_dim)
    assert CONFIG.count_macs(5) == counted + between_tokens + 5 * 8 * 17


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qk_dim": 7}, "qk_dim=7 is odd; .* use an even width"),
        ({"mask_dialect": "add"}, "mask_dialect='add' is unknown; use one of exact, gau_alpha, bert4torch, bert4keras"),
        ({"num_token_types": 0}, "num_token_types=0 is not usable"),
        ({"causal": True}, "unknown config field causal for model_type 'gau_alpha'"),
    ],
)
def test_unusable_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GauAlphaConfig.from_dict({**CONFIG.to_dict(), **changes})
