"""Importing mmpose: what its real state dicts tell, what must be said, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from flash_export.errors import CheckpointError, ConfigError
from flash_export.models.checkpoint import load_checkpoint
from flash_export.models.importers.mmpose import import_rtmpose
from flash_export.models.rtmpose_gau import RtmposeGauConfig, SimccHead
from tests.models.mmpose_release import MmposeRelease, import_mmpose

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

pytestmark = pytest.mark.peer

# As in mmpose's own configs, in small.
HEAD: dict[str, Any] = {
    "type": "RTMCCHead",
    "in_channels": 6,
    "out_channels": 5,
    "input_size": (12, 16),
    "in_featuremap_size": (3, 4),
    "simcc_split_ratio": 2.0,
    "final_layer_kernel_size": 7,
    "gau_cfg": {
        "hidden_dims": 8,
        "s": 4,
        "expansion_factor": 2,
        "dropout_rate": 0.0,
        "drop_path": 0.0,
        "act_fn": "SiLU",
        "use_rel_bias": False,
        "pos_enc": False,
    },
    "loss": {"type": "KLDiscretLoss", "use_target_weight": True},
    "decoder": {"type": "SimCCLabel", "input_size": (12, 16), "sigma": (4.9, 5.66), "simcc_split_ratio": 2.0},
}
ASKED = {
    "gau_cfg.act_fn": "SiLU",
    "gau_cfg.pos_enc": False,
    "in_featuremap_size": [3, 4],
    "input_size": [12, 16],
}
CONFIG = RtmposeGauConfig(
    num_keypoints=5, dim=8, hidden_dim=16, out_dim=8, qk_dim=4, head=SimccHead(6, 3, 4, 7, 12, 16, 2.0)
)
BLOCK: dict[str, Any] = {"num_token": 5, "in_token_dims": 8, "out_token_dims": 3, "s": 4, "act_fn": "ReLU"}
BLOCK |= {"pos_enc": True, "bias": True, "eps": 0.01, "expansion_factor": 1.5}
BLOCK_ASKED = {"act_fn": "ReLU", "pos_enc": True, "eps": 0.01}


@pytest.fixture(scope="module")
def mmpose() -> MmposeRelease:
    return import_mmpose()


@pytest.fixture
def head(mmpose: MmposeRelease) -> dict[str, Tensor]:
    arguments = {name: value for name, value in HEAD.items() if name != "type"}
    return dict(mmpose.head(**arguments).state_dict())


@pytest.fixture
def block(mmpose: MmposeRelease) -> dict[str, Tensor]:
    return dict(mmpose.block(**BLOCK).state_dict())


@pytest.mark.parametrize("arguments", [HEAD, ASKED, {**HEAD, **ASKED}])
def test_head_needs_only_what_weights_do_not_tell(head: dict[str, Tensor], arguments: dict[str, Any]) -> None:
    config, tensors = import_rtmpose(head, arguments)
    assert config == CONFIG
    assert tensors.keys() == head.keys()


def test_head_of_a_pose_estimator_is_taken_out_of_it(head: dict[str, Tensor], tmp_path: Path) -> None:
    whole = {f"head.{name}": tensor for name, tensor in head.items()}
    others = {f"{part}.weight": torch.ones(1) for part in ("backbone.stem", "neck.convs.0", "data_preprocessor.mean")}
    torch.save({"state_dict": {**others, **whole}, "meta": {"epoch": 420}}, tmp_path / "rtmpose.pth")
    loaded = load_checkpoint(tmp_path / "rtmpose.pth", family="rtmpose_gau", config=HEAD)
    assert loaded.model.config == CONFIG
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, head[name])
    assert loaded.provenance["format"] == "mmpose"


@pytest.mark.parametrize("prefix", ["", "gau.", "head.gau."])
def test_block_alone_is_imported_from_any_prefix(block: dict[str, Tensor], prefix: str) -> None:
    tensors = {f"{prefix}{name}": tensor for name, tensor in block.items()}
    for arguments in (BLOCK, BLOCK_ASKED):
        config, found = import_rtmpose(tensors, arguments)
        assert config == RtmposeGauConfig(
            num_keypoints=5,
            dim=8,
            hidden_dim=12,
            out_dim=3,
            qk_dim=4,
            act_fn="relu",
            bias=True,
            rel_bias=True,
            rotary=True,
            eps=0.01,
        )
        assert found.keys() == {f"gau.{name}" for name in block}


def test_number_of_keypoints_is_asked_for_where_no_bias_tells_it(mmpose: MmposeRelease) -> None:
    block = mmpose.block(**{**BLOCK, "use_rel_bias": False}).state_dict()
    with pytest.raises(ConfigError, match="weights do not tell num_token; give the arguments"):
        import_rtmpose(block, BLOCK_ASKED)
    assert import_rtmpose(block, {**BLOCK_ASKED, "num_token": 9})[0].num_keypoints == 9


@pytest.mark.parametrize("left_out", ASKED)
def test_what_weights_do_not_tell_is_asked_for(head: dict[str, Tensor], left_out: str) -> None:
    given = {name: value for name, value in ASKED.items() if name != left_out}
    with pytest.raises(ConfigError, match=f"weights do not tell {left_out}; give the arguments of the model's mmpose"):
        import_rtmpose(head, given)


def test_all_that_is_missing_is_said_at_once(mmpose: MmposeRelease, head: dict[str, Tensor]) -> None:
    with pytest.raises(ConfigError, match=f"weights do not tell {', '.join(ASKED)}; give"):
        import_rtmpose(head, {})
    block = mmpose.block(**{**BLOCK, "use_rel_bias": False}).state_dict()
    with pytest.raises(ConfigError, match="weights do not tell act_fn, pos_enc, num_token; give"):
        import_rtmpose(block, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 7}, "in_channels=7, but the weights say 6; correct it or leave it out"),
        ({"out_channels": 17}, "out_channels=17, but the weights say 5"),
        ({"final_layer_kernel_size": 1}, "final_layer_kernel_size=1, but the weights say 7"),
        ({"gau_cfg.s": 8}, "gau_cfg.s=8, but the weights say 4"),
        ({"gau_cfg.hidden_dims": 16}, "gau_cfg.hidden_dims=16, but the weights say 8"),
        ({"gau_cfg.use_rel_bias": True}, "gau_cfg.use_rel_bias=True, but the weights say False"),
        ({"gau_cfg.expansion_factor": 3}, "gau_cfg.expansion_factor=3 means 24 hidden channels, the weights have 16"),
        ({"gau_cfg.expansion_factor": "2"}, "gau_cfg.expansion_factor='2' is not a number"),
        ({"in_featuremap_size": [4, 4]}, r"in_featuremap_size=\[4, 4\] has 16 pixels, but the weights are for 12"),
        ({"in_featuremap_size": 12}, r"in_featuremap_size=12 is not a size; give \[width, height\]"),
        ({"input_size": [12.0, 16]}, r"input_size=\[12.0, 16\] is not a size"),
        ({"input_size": [192, 256]}, r"24 x 32 bins|mean 384 x 512 bins, the weights have 24 x 32"),
        ({"input_size": [16, 12]}, r"input_size=\[16, 12\] and 24 x 32 bins do not tell simcc_split_ratio"),
        ({"simcc_split_ratio": 1.5}, "simcc_split_ratio=1.5 mean 18 x 24 bins, the weights have 24 x 32"),
        ({"simcc_split_ratio": True}, "simcc_split_ratio=True is not a number"),
        ({"gau_cfg.act_fn": "GELU"}, "gau_cfg.act_fn='GELU' is unknown; mmpose has SiLU and ReLU"),
        ({"gau_cfg.pos_enc": "add"}, "gau_cfg.pos_enc='add' is not a boolean"),
        ({"gau_cfg": 3}, "gau_cfg=3 is not usable; give an object"),
        (
            {"gau_cfg": {"act_fun": "SiLU"}},
            "unknown argument 'gau_cfg.act_fun'; mmpose's arguments are gau_cfg.act_fn, ",
        ),
        ({"act_fn": "SiLU"}, "unknown argument 'act_fn'"),
        ({"causal": False}, "unknown argument 'causal'"),
    ],
)
def test_contradictions_and_unknown_arguments_are_refused(
    head: dict[str, Tensor], changes: dict[str, Any], message: str
) -> None:
    if changes == {"input_size": [192, 256]}:
        changes = {**changes, "simcc_split_ratio": 2.0}
    with pytest.raises(ConfigError, match=message):
        import_rtmpose(head, {**ASKED, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_token": 6}, "num_token=6, but the weights say 5"),
        ({"out_token_dims": 8}, "out_token_dims=8, but the weights say 3"),
        ({"bias": False}, "bias=False, but the weights say True"),
        ({"attn_type": "cross-attn"}, "attn_type='cross-attn', but the weights say 'self-attn'"),
        ({"eps": -1.0}, "eps=-1.0 is not usable"),
        ({"in_channels": 8}, "unknown argument 'in_channels'"),
    ],
)
def test_contradictions_of_a_block_are_refused(block: dict[str, Tensor], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        import_rtmpose(block, {**BLOCK_ASKED, **changes})


def test_ratio_that_bins_tell_only_in_part_is_asked_for(mmpose: MmposeRelease) -> None:
    arguments = {**HEAD, "input_size": (11, 16), "simcc_split_ratio": 1.3}
    del arguments["type"]
    head = mmpose.head(**arguments).state_dict()
    asked = {**ASKED, "input_size": [11, 16]}
    with pytest.raises(ConfigError, match=r"14 x 20 bins do not tell simcc_split_ratio.*add the ratio"):
        import_rtmpose(head, asked)
    config, _ = import_rtmpose(head, {**asked, "simcc_split_ratio": 1.3})
    assert config.head is not None
    assert config.head.num_bins == (14, 20)


def test_weights_of_something_else_are_refused(
    mmpose: MmposeRelease, head: dict[str, Tensor], block: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(
        CheckpointError, match=r"no 4-dimensional 'final_layer.weight' in the checkpoint \(found layers"
    ):
        import_rtmpose({"layers.0.weight": torch.ones(2, 2)}, ASKED)
    with pytest.raises(CheckpointError, match=r"no 2-dimensional 'gau\.uv\.weight'"):
        import_rtmpose({name: tensor for name, tensor in head.items() if "uv" not in name}, ASKED)
    with pytest.raises(CheckpointError, match=r"'optimizer.state' is no tensor of a pose estimator.*data_preprocessor"):
        import_rtmpose({"head.gau.w": torch.ones(9), "optimizer.state": torch.ones(1)}, ASKED)
    cross = mmpose.block(**{**BLOCK, "attn_type": "cross-attn", "pos_enc": False}).state_dict()
    with pytest.raises(CheckpointError, match="a block with cross-attention; only self-attention is supported"):
        import_rtmpose(cross, BLOCK_ASKED)
    torch.save({**head, "conv_dec.weight": torch.ones(3)}, tmp_path / "head.pth")  # as a head of RTMW has
    with pytest.raises(CheckpointError, match=r"1 unexpected \(conv_dec.weight\)"):
        load_checkpoint(tmp_path / "head.pth", family="rtmpose_gau", config=ASKED)
