from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from flash_export.data.sources import RandomSource
from flash_export.errors import ConfigError
from flash_export.interface import Bins
from flash_export.layers.position import spread_bias
from flash_export.models.checkpoint import load_pretrained
from flash_export.models.rtmpose_gau import (
    RtmposeGauConfig,
    RtmposeGauModel,
    SimccHead,
    compute_turns,
    turn_halves,
)
from tests.models.macs import count_weight_macs

HEAD = SimccHead(in_channels=5, map_width=3, map_height=4, kernel_size=3, image_width=19, image_height=20)
BLOCK = RtmposeGauConfig(num_keypoints=6, dim=8, hidden_dim=12, out_dim=8, qk_dim=4)
WITH_HEAD = replace(BLOCK, head=HEAD)


@pytest.mark.parametrize("config", [BLOCK, replace(BLOCK, out_dim=3, rel_bias=True), WITH_HEAD])
def test_saved_model_is_loaded_again(config: RtmposeGauConfig, tmp_path: Any) -> None:
    model = RtmposeGauModel(config).eval()
    model.save_pretrained(tmp_path)
    again = load_pretrained(tmp_path)
    assert again.config == config
    inputs = RandomSource(config.interface).draw(2, 6).to_model_inputs(masked=False)
    features = torch.from_numpy(inputs["features"])
    torch.testing.assert_close(again(features), model(features), rtol=0, atol=0)


def test_interface_is_what_the_model_takes_and_gives() -> None:
    for config in (BLOCK, WITH_HEAD, replace(WITH_HEAD, head=replace(HEAD, bins_per_pixel=1.3))):
        interface = config.interface
        batch = RandomSource(interface).draw(3, 6)
        outputs = RtmposeGauModel(config)(torch.from_numpy(batch.arrays["features"]))
        outputs = (outputs,) if config.head is None else outputs
        assert [tuple(values.shape) for values in outputs] == [(3, *spec.shape[1:]) for spec in interface.outputs]
    assert [spec.shape[-1] for spec in interface.outputs] == [24, 26]  # 19 and 20 pixels, 1.3 bins each, rounded down
    assert interface.outputs[0].content == Bins(1.3)
    assert (interface.fixed_len, interface.unit, interface.padding) == (6, "keypoints", "refused")


@pytest.mark.parametrize(("config", "around"), [(BLOCK, []), (WITH_HEAD, ["maps", "embedding"])])
def test_probes_read_the_quantities_in_order(config: RtmposeGauConfig, around: list[str]) -> None:
    names: list[str] = []
    model = RtmposeGauModel(config)
    batch = RandomSource(config.interface).draw(1, 6)
    with model.read_probes(lambda name, _: names.append(name)):
        model(torch.from_numpy(batch.arrays["features"]))
    assert [name.removeprefix("layers.0.") for name in names] == list(config.quantities)
    assert [name for name in names if not name.startswith("layers.0.")] == around


def test_macs_are_those_of_the_products() -> None:
    counted = count_weight_macs(RtmposeGauModel(WITH_HEAD), torch.zeros(1, 5, 4, 3))
    between_keypoints = 6 * 6 * (BLOCK.qk_dim + BLOCK.hidden_dim)
    assert WITH_HEAD.count_macs(6) == counted + between_keypoints


def test_bias_goes_by_the_distance_from_query_to_key() -> None:
    assert spread_bias(torch.arange(5.0)).tolist() == [[2, 3, 4], [1, 2, 3], [0, 1, 2]]


def test_turning_keeps_lengths_and_frequencies_rise() -> None:
    cos, sin = compute_turns(3, 4)
    angles = torch.tensor([[0, 0], [1, 100], [2, 200]]).float()  # 10000 to the powers 0 and 1/2
    torch.testing.assert_close((cos, sin), (angles.cos(), angles.sin()), rtol=0, atol=1e-6)
    x = torch.randn(2, 3, 4)
    turned = turn_halves(x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(turned[:, 0], x[:, 0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotary": True, "qk_dim": 3}, "qk_dim=3 is odd; .* use an even width"),
        ({"rel_bias": True, "num_keypoints": 1}, "mmpose cannot run that either; use rel_bias false"),
        ({"act_fn": "gelu"}, "act_fn='gelu' is unknown; use one of silu, relu"),
        ({"eps": 0.0}, "eps=0.0 is not usable"),
        ({"num_keypoints": 0}, "num_keypoints=0 is not usable"),
        ({"head": 3}, "head=3 is not usable; give an object with in_channels, .*, or null"),
        ({"head": {"in_channels": 5}}, "config of head of model_type 'rtmpose_gau' lacks map_width, .*config.json"),
        (
            {"head": {**vars(HEAD), "depth": 1}},
            "unknown config field depth for head of model_type 'rtmpose_gau'; known",
        ),
        ({"head": {**vars(HEAD), "kernel_size": 2}}, "kernel_size=2 is even.*; use an odd one"),
        ({"head": {**vars(HEAD), "bins_per_pixel": 0.05}}, "bins_per_pixel=0.05 gives 19 pixels .* use 1 / 19 or more"),
        ({"head": {**vars(HEAD), "bins_per_pixel": float("nan")}}, "bins_per_pixel=nan is not usable"),
    ],
)
def test_unusable_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RtmposeGauConfig.from_dict({**BLOCK.to_dict(), **changes})
