"""mmpose's own SimCC head of RTMPose, or its gated attention unit alone."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from flash_export.originals.installed import ModelFiles, Original, load_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

DISTRIBUTION = "mmpose"
_HEAD, _BLOCK, _CONFIG = "head.", "gau.", "gau_cfg."
_LEFT_OUT = {"loss", "decoder", "init_cfg", "num_token", "in_token_dims", "out_token_dims"}


class _BaseModule(nn.Module):
    def __init__(self, init_cfg: object = None) -> None:
        super().__init__()


class _Registry:
    def register_module(self) -> Any:
        return lambda kind: kind

    def build(self, config: object) -> nn.Module:
        """Build nothing: losses and decoders take no part in a forward pass."""
        return nn.Identity()


def _refuse(*_: object, **__: object) -> None:
    raise AssertionError("a forward pass does not need this")


FILES = ModelFiles(
    "mmpose",
    ("models.heads.coord_cls_heads.rtmcc_head", "models.utils.rtmcc_block"),
    ("models", "models.utils", "models.heads", "models.heads.coord_cls_heads", "utils"),
    {
        "mmcv": {},
        "mmcv.cnn": {"build_conv_layer": _refuse, "build_norm_layer": _refuse},
        "mmcv.cnn.bricks": {"DropPath": _refuse},
        "mmcv.cnn.bricks.transformer": {"FFN": _refuse, "MultiheadAttention": _refuse},
        "mmengine": {},
        "mmengine.config": {"ConfigDict": dict},
        "mmengine.dist": {"get_dist_info": _refuse},
        "mmengine.model": {"BaseModule": _BaseModule, "ModuleList": nn.ModuleList},
        "mmengine.structures": {"InstanceData": object, "PixelData": object},
        "mmengine.utils": {
            "digit_version": lambda version: tuple(int(part) for part in version.partition("+")[0].split(".")[:3]),
            "is_seq_of": _refuse,
            "to_2tuple": _refuse,
        },
        "mmengine.utils.dl_utils": {"TORCH_VERSION": torch.__version__},
        "mmpose.codecs": {},
        "mmpose.codecs.utils": {"get_simcc_normalized": _refuse},
        "mmpose.evaluation": {},
        "mmpose.evaluation.functional": {"simcc_pck_accuracy": _refuse},
        "mmpose.registry": {"KEYPOINT_CODECS": _Registry(), "MODELS": _Registry()},
        "mmpose.structures": {"PoseDataSample": object},
    },
)


def build(config: Mapping[str, Any], arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Original:
    """Build the head, or the unit; of a whole pose estimator the head is taken.

    Args:
        config: ``config.json`` of a bundle of family ``rtmpose_gau``, for sizes alone.
        arguments: What the user told: arguments of the head, ``gau_cfg`` as a dictionary or by dotted names, or those
            of the unit; for all else the library's own defaults hold.
        tensors: The state dict of the pose estimator, of its head, or of the unit.

    Raises:
        ValueError: The weights do not fit.
    """
    (heads, blocks), stand_ins = FILES.load()
    head = config["head"]
    unit = {
        "s": config["qk_dim"],
        "expansion_factor": (config["hidden_dim"] + 0.5) / config["dim"],  # the library rounds down
        "dropout_rate": 0.0,
        "drop_path": 0.0,
        "use_rel_bias": config["rel_bias"],
    }
    own = {name.removeprefix(_HEAD): tensor for name, tensor in tensors.items() if name.startswith(_HEAD)}
    own = own or dict(tensors)
    if head is None:
        told = _pick(arguments, blocks.RTMCCBlock, {**unit, "bias": config["bias"]})
        module = blocks.RTMCCBlock(config["num_keypoints"], config["dim"], config["out_dim"], **told)
        own = {name.removeprefix(_BLOCK): tensor for name, tensor in own.items()}
    else:
        dotted = {name.removeprefix(_CONFIG): x for name, x in arguments.items() if name.startswith(_CONFIG)}
        nested = {**arguments.get("gau_cfg", {}), **dotted}
        sizes = {
            "in_channels": head["in_channels"],
            "out_channels": config["num_keypoints"],
            "final_layer_kernel_size": head["kernel_size"],
            "simcc_split_ratio": arguments.get("simcc_split_ratio", head["bins_per_pixel"]),
            "gau_cfg": {**nested, "hidden_dims": config["dim"], **unit},
        }
        module = heads.RTMCCHead(**_pick(arguments, heads.RTMCCHead, sizes))
    load_weights(module, own, DISTRIBUTION)

    def call(inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        features = inputs["features"]
        return (module(features),) if head is None else tuple(module((features,)))

    return Original(module, call, stand_ins)


def _pick(arguments: Mapping[str, Any], kind: type, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return what weights tell and, of the arguments, what a class takes that changes what it predicts."""
    accepted = inspect.signature(kind).parameters.keys() - _LEFT_OUT
    return {**{name: value for name, value in arguments.items() if name in accepted}, **told}
