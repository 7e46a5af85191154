"""The reference of RTMPose's gated attention unit and head against mmpose 1.3.2's own files, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flash_export.layers.norm import ScaleNorm
from flash_export.models.importers.mmpose import import_rtmpose
from flash_export.models.rtmpose_gau import RtmposeGauModel
from tests.models.mmpose_release import MmposeRelease, import_mmpose

pytestmark = pytest.mark.peer

RELATIVE_TOLERANCE = 1e-8
KEYPOINTS = (1, 17, 21, 26, 133)  # one; COCO, a hand, Halpe, a whole body

block_arguments: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "num_token": st.sampled_from((*KEYPOINTS, 2)),
        "in_token_dims": st.sampled_from((1, 7, 24)),
        "out_token_dims": st.sampled_from((1, 7, 24)),
        "s": st.sampled_from((2, 8, 30)),
        "expansion_factor": st.sampled_from((1, 1.5, 2)),
        "eps": st.sampled_from((1e-5, 0.5)),
        "act_fn": st.sampled_from(("SiLU", "ReLU")),
        "bias": st.booleans(),
        "use_rel_bias": st.booleans(),
        "pos_enc": st.booleans(),
    }
)


@pytest.fixture(scope="module")
def mmpose() -> MmposeRelease:
    return import_mmpose()


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Move every weight by a normal number of deviation 0.3, so that none is left at 0 or 1."""
    torch.manual_seed(seed)
    model.double().eval().requires_grad_(requires_grad=False)
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def load(tensors: dict[str, Tensor], arguments: dict[str, Any]) -> RtmposeGauModel:
    """Import mmpose's tensors into our model in float64, strictly."""
    config, tensors = import_rtmpose(tensors, arguments)
    ours = RtmposeGauModel(config).double().eval().requires_grad_(requires_grad=False)
    ours.load_state_dict(tensors)
    return ours


def compare(actual: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().item()
    assert scale < 1e9  # 0 where no score is above 0; both are then exactly that
    assert actual.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(actual, expected, rtol=0, atol=RELATIVE_TOLERANCE * scale)


def check_block(mmpose: MmposeRelease, arguments: dict[str, Any], batch: int, seed: int) -> None:
    arguments = {**arguments, "use_rel_bias": arguments["use_rel_bias"] and arguments["num_token"] > 1}
    theirs = randomise(mmpose.block(**arguments), seed)
    ours = load(theirs.state_dict(), arguments)
    x = torch.randn(batch, arguments["num_token"], arguments["in_token_dims"], dtype=torch.float64)
    compare(ours(x), theirs(x))


@pytest.mark.parametrize("num_token", KEYPOINTS)
@pytest.mark.parametrize("act_fn", ["SiLU", "ReLU"])
@pytest.mark.parametrize("pos_enc", [False, True])
@pytest.mark.parametrize("use_rel_bias", [False, True])
def test_block_of_published_widths_equals_mmpose(
    mmpose: MmposeRelease, num_token: int, act_fn: str, pos_enc: bool, use_rel_bias: bool
) -> None:
    sizes = {"num_token": num_token, "in_token_dims": 256, "out_token_dims": 256, "s": 128}
    dialect = {"act_fn": act_fn, "pos_enc": pos_enc, "use_rel_bias": use_rel_bias}
    check_block(mmpose, {**sizes, **dialect}, batch=1, seed=num_token)


@settings(deadline=None, max_examples=80)
@given(arguments=block_arguments, batch=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_block_equals_mmpose(mmpose: MmposeRelease, arguments: dict[str, Any], batch: int, seed: int) -> None:
    check_block(mmpose, arguments, batch, seed)


def test_relative_bias_of_one_keypoint_fails_in_mmpose_too(mmpose: MmposeRelease) -> None:
    block = mmpose.block(1, 8, 8, s=4, use_rel_bias=True)
    with pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
        block(torch.randn(2, 1, 8))


@settings(deadline=None, max_examples=40)
@given(
    num_keypoints=st.sampled_from((1, 17, 26)),
    kernel_size=st.sampled_from((1, 3, 7)),
    map_size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    input_size=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    split_ratio=st.sampled_from((0.5, 1.3, 2.0, 3)),
    gau_cfg=st.fixed_dictionaries(
        {
            "hidden_dims": st.sampled_from((7, 24)),
            "s": st.sampled_from((2, 30)),
            "expansion_factor": st.sampled_from((1.5, 2)),
            "act_fn": st.sampled_from(("SiLU", "ReLU")),
            "use_rel_bias": st.booleans(),
            "pos_enc": st.booleans(),
        }
    ),
    batch=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_head_equals_mmpose(
    mmpose: MmposeRelease,
    num_keypoints: int,
    kernel_size: int,
    map_size: tuple[int, int],
    input_size: tuple[int, int],
    split_ratio: float,
    gau_cfg: dict[str, Any],
    batch: int,
    seed: int,
) -> None:
    gau_cfg = {**gau_cfg, "use_rel_bias": gau_cfg["use_rel_bias"] and num_keypoints > 1}
    arguments: dict[str, Any] = {
        "in_channels": 5,
        "out_channels": num_keypoints,
        "input_size": input_size,
        "in_featuremap_size": map_size,
        "simcc_split_ratio": split_ratio,
        "final_layer_kernel_size": kernel_size,
        "gau_cfg": {**gau_cfg, "dropout_rate": 0.0, "drop_path": 0.0},
    }
    theirs = randomise(mmpose.head(**arguments), seed)
    ours = load(theirs.state_dict(), arguments)
    width, height = map_size
    features = torch.randn(batch, 5, height, width, dtype=torch.float64)
    scores: Any = ours(features)
    for actual, expected, spec in zip(scores, theirs((features,)), ours.config.interface.outputs, strict=True):
        compare(actual, expected)
        assert actual.shape == (batch, *spec.shape[1:])


def test_scale_norm_is_mmpose_s_where_the_clamp_matters(mmpose: MmposeRelease) -> None:
    x = torch.tensor([[0.0, 0.0], [1e-7, -2e-7], [0.3, 0.4], [3.0, -4.0]], dtype=torch.float64)
    for eps in (1e-5, 0.5):
        torch.testing.assert_close(ScaleNorm(2, eps)(x), mmpose.scale_norm(2, eps)(x), rtol=1e-12, atol=0)
