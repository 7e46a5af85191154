"""FLASH-Quad of JunnYu's against its formulas, written out number by number; the library is on no registry."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flash_export.errors import ConfigError, InputError
from flash_export.models.checkpoint import load_pretrained
from flash_export.models.flash_quad import (
    FlashQuadConfig,
    FlashQuadModel,
    RmsScaleNorm,
    compute_angles,
    compute_sinusoid,
    turn_halves,
)
from tests.models.junnyu_names import QUAD, make_flash_quad
from tests.models.macs import count_weight_macs

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

RELATIVE_TOLERANCE = 1e-12  # float64, and the same angles
CONFIG = QUAD


def make_model(config: FlashQuadConfig, seed: int = 0) -> FlashQuadModel:
    """Make a model in float64."""
    return make_flash_quad(config, seed).double()


def norm(config: FlashQuadConfig, x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    """Normalise one vector."""
    if config.norm_type == "scalenorm":
        return x / math.sqrt(sum(float(one) ** 2 for one in x) / len(x) + config.norm_eps) * weights[f"{name}.g"]
    centred = x - x.mean()
    scale = math.sqrt(float(centred.square().mean()) + config.norm_eps)
    return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def turn(x: Tensor, position: int) -> Tensor:
    """Turn one query or key, pair by pair."""
    turned, half = x.clone(), len(x) // 2
    for index, angle in enumerate(compute_angles(position + 1, len(x))[position]):
        cos, sin = float(angle.cos()), float(angle.sin())
        turned[index] = x[index] * cos - x[half + index] * sin
        turned[half + index] = x[half + index] * cos + x[index] * sin
    return turned


def compute_naively(model: FlashQuadModel, input_ids: list[int], num_tokens: int) -> Tensor:
    """Return the logits of one row, of which ``num_tokens`` are no padding, position by position."""
    config, weights = model.config, model.state_dict()
    table = weights["token_emb.weight"]
    rows = []
    for position, token in enumerate(input_ids):
        sinusoid = compute_sinusoid(position + 1, config.dim)[position].double() * weights["position_scale"]
        total = table[token] + weights["token_type_emb.weight"][0] + sinusoid
        rows.append(norm(config, total, weights, "embedding_norm"))
    for layer in (f"layers.{index}" for index in range(config.depth)):
        gates: list[Tensor] = []
        values: list[Tensor] = []
        queries: list[Tensor] = []
        keys: list[Tensor] = []
        for position, x in enumerate(rows):
            projected = weights[f"{layer}.uv.weight"] @ norm(config, x, weights, f"{layer}.norm")
            projected = projected + weights[f"{layer}.uv.bias"]
            activated = projected / (1 + (-projected).exp())
            gates.append(activated[: config.hidden_dim])
            values.append(activated[config.hidden_dim : 2 * config.hidden_dim])
            for heads, index in ((queries, 0), (keys, 1)):
                head = activated[2 * config.hidden_dim :] * weights[f"{layer}.gamma"][index]
                heads.append(turn(head + weights[f"{layer}.beta"][index], position))
        updated = []
        for i, x in enumerate(rows):
            mixed = torch.zeros(config.hidden_dim).double()
            for j in range(num_tokens if i < num_tokens else 0):
                bias = weights[f"{layer}.w"][config.max_positions - 1 + j - i]
                score = float(queries[i] @ keys[j] / config.max_positions + bias)
                mixed += max(score, 0) ** 2 * values[j]
            updated.append(x + weights[f"{layer}.o.weight"] @ (gates[i] * mixed) + weights[f"{layer}.o.bias"])
        rows = updated
    logits = []
    for x in rows:
        hidden = weights["transform.weight"] @ x + weights["transform.bias"]
        hidden = norm(config, hidden / (1 + (-hidden).exp()), weights, "transform_norm")
        logits.append(table @ hidden + weights["logit_bias"])
    return torch.stack(logits)


configs = st.builds(
    FlashQuadConfig,
    vocab_size=st.just(17),
    dim=st.sampled_from((2, 8)),
    depth=st.integers(1, 2),
    hidden_dim=st.sampled_from((3, 16)),
    qk_dim=st.sampled_from((2, 6)),
    max_positions=st.sampled_from((7, 16)),
    num_token_types=st.integers(1, 2),
    norm_type=st.sampled_from(("scalenorm", "layernorm")),
    norm_eps=st.sampled_from((1e-5, 0.1)),
)


@settings(deadline=None, max_examples=30)
@given(configs, st.lists(st.integers(1, 7), min_size=1, max_size=2), st.integers(0, 2**16))
def test_model_is_its_formulas_padded_or_not(config: FlashQuadConfig, lengths: list[int], seed: int) -> None:
    model = make_model(config, seed)
    input_ids = torch.randint(0, 17, (len(lengths), max(lengths)))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    logits = model(input_ids, mask)
    for row, length in enumerate(lengths):
        expected = compute_naively(model, input_ids[row].tolist(), length)
        tolerance = RELATIVE_TOLERANCE * float(expected.abs().max())
        torch.testing.assert_close(logits[row], expected, rtol=0, atol=tolerance)
        alone = model(input_ids[row : row + 1, :length])[0]
        torch.testing.assert_close(alone, expected[:length], rtol=0, atol=tolerance)


def test_longest_sequence_is_its_formulas() -> None:
    model = make_model(replace(CONFIG, depth=1))
    input_ids = torch.randint(0, 17, (1, 16))
    expected = compute_naively(model, input_ids[0].tolist(), 16)
    torch.testing.assert_close(model(input_ids)[0], expected, rtol=0, atol=RELATIVE_TOLERANCE * float(expected.max()))


def test_saved_model_is_loaded_again(tmp_path: Path) -> None:
    model = make_model(CONFIG).float()
    model.save_pretrained(tmp_path)
    again = load_pretrained(tmp_path)
    assert again.config == model.config
    input_ids, mask = torch.tensor([[3, 4, 5], [6, 7, 8]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    torch.testing.assert_close(again(input_ids, mask), model(input_ids, mask), rtol=0, atol=0)


def test_interface_ends_where_the_positions_do() -> None:
    interface = CONFIG.interface
    assert (interface.max_len, interface.padding, interface.needs_mask, interface.window) == (16, "exact", True, 1)
    with pytest.raises(InputError, match="seq_len=17 exceeds the 16 positions of the model; shorten it"):
        make_model(CONFIG)(torch.zeros(1, 17, dtype=torch.long))


def test_no_token_is_special_and_padding_says_nothing() -> None:
    """The library, given no mask, takes every token 0 for padding."""
    model = make_model(CONFIG)
    input_ids, mask = torch.tensor([[3, 0, 5, 0]]), torch.tensor([[1, 1, 1, 0]])
    other = torch.tensor([[3, 0, 5, 9]])
    assert torch.equal(model(input_ids, mask)[:, :3], model(other, mask)[:, :3])
    torch.testing.assert_close(model(input_ids, mask)[:, :3], model(input_ids[:, :3]))
    alone = model(torch.tensor([[3, 5]]))[0, 0]
    assert (model(input_ids[:, :3])[0, 0] - alone).abs().max() > 1e-3


def test_row_of_padding_alone_stays_finite_and_leaves_others_alone() -> None:
    model = make_model(CONFIG)
    input_ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
    logits = model(input_ids, torch.tensor([[1, 1, 1], [0, 0, 0]]))
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[:1], model(input_ids[:1]))


def test_positions_are_those_of_the_library() -> None:
    """Frequencies fall from 1 to nearly 1 / 10,000; angles and sinusoids are fp32."""
    torch.testing.assert_close(compute_angles(3, 4), torch.tensor([[0, 0], [1, 0.01], [2, 0.02]]))
    sinusoid = compute_sinusoid(512, 4)
    assert sinusoid.dtype == torch.float32
    expected = [math.sin(511), math.sin(5.11), math.cos(511), math.cos(5.11)]
    torch.testing.assert_close(sinusoid[511], torch.tensor(expected), rtol=0, atol=5e-5)


def test_turning_keeps_lengths_and_products_go_by_distance() -> None:
    x = torch.randn(1, 1, 6, dtype=torch.float64).expand(1, 9, 6)
    turned = turn_halves(x)
    torch.testing.assert_close(turned[0, 0], x[0, 0])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    products = turned[0] @ turned[0].T
    torch.testing.assert_close(products.diagonal(3), products[0, 3].expand(6), rtol=0, atol=1e-5)


def test_norm_adds_its_epsilon_to_the_mean_square() -> None:
    norm = RmsScaleNorm(eps=0.5).double().requires_grad_(requires_grad=False)
    norm.g.fill_(3.0)
    x = torch.tensor([[3.0, -4.0], [0.0, 0.0]]).double()
    expected = torch.tensor([[9 / 13**0.5, -12 / 13**0.5], [0, 0]]).double()
    torch.testing.assert_close(norm(x), expected)


def test_probes_read_the_quantities_in_order() -> None:
    names: list[str] = []
    model = make_model(CONFIG)
    with model.read_probes(lambda name, _: names.append(name)):
        model(torch.tensor([[1, 2]]))
    in_blocks = [name for name, one in CONFIG.quantities.items() if one.place == "block"]
    assert names == ["embedding", *(f"layers.{index}.{name}" for index in (0, 1) for name in in_blocks), "transform"]


def test_macs_are_those_of_the_products() -> None:
    counted = count_weight_macs(make_model(CONFIG), torch.zeros(1, 5, dtype=torch.long))
    between_tokens = 2 * 5 * 5 * (CONFIG.qk_dim + CONFIG.hidden_dim)
    assert CONFIG.count_macs(5) == counted + between_tokens + 5 * 8 * 17


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 7}, "dim=7 is odd; .* use an even width"),
        ({"qk_dim": 5}, "qk_dim=5 is odd; .* use an even width"),
        ({"norm_eps": 0}, "norm_eps=0 is not usable; use a number above 0, such as 1e-05"),
        ({"norm_type": "rms"}, "norm_type='rms' is unknown; use one of scalenorm, layernorm"),
        ({"max_positions": 0}, "max_positions=0 is not usable"),
        ({"causal": True}, "unknown config field causal for model_type 'flash_quad'"),
    ],
)
def test_unusable_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FlashQuadConfig.from_dict({**CONFIG.to_dict(), **changes})
