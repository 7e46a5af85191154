"""mmpose 1.3.2's own files of RTMPose's head, without what the package depends on.

mmcv and mmengine are not there: what these files take from them, a base class of modules, a registry and types, is
replaced by a few lines. What computes is mmpose's own text.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

ORACLES = Path(sys.prefix) / "oracles"
RELEASE = "mmpose==1.3.2"
_FOLDERS = ("", "models", "models.utils", "models.heads", "models.heads.coord_cls_heads", "utils")


@dataclass(frozen=True)
class MmposeRelease:
    """What is compared with."""

    block: Any
    head: Any
    scale_norm: Any


def import_mmpose() -> MmposeRelease:
    """Import the files, and leave no module behind; skips where no oracle was installed at all."""
    if not ORACLES.is_dir():
        pytest.skip(f"{ORACLES} does not exist; make test installs it")
    folder = ORACLES / RELEASE / "mmpose"
    before = dict(sys.modules)
    with _write_no_bytecode():
        try:
            sys.modules.update(_make_stubs())
            for name in _FOLDERS:
                package = types.ModuleType(f"mmpose.{name}".rstrip("."))
                package.__path__ = [str(folder.joinpath(*name.split(".")))]
                sys.modules[package.__name__] = package
            head = importlib.import_module("mmpose.models.heads.coord_cls_heads.rtmcc_head")
            block = importlib.import_module("mmpose.models.utils.rtmcc_block")
        finally:
            for name in sys.modules.keys() - before.keys():
                del sys.modules[name]
    for module in (head, block):
        assert Path(str(module.__file__)).is_relative_to(folder)
    return MmposeRelease(block.RTMCCBlock, head.RTMCCHead, block.ScaleNorm)


@contextlib.contextmanager
def _write_no_bytecode() -> Iterator[None]:
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


class _BaseModule(nn.Module):
    def __init__(self, init_cfg: object = None) -> None:
        super().__init__()


class _Registry:
    def register_module(self) -> Any:
        return lambda kind: kind

    def build(self, config: object) -> nn.Module:
        """Build nothing: losses and decoders take no part in a forward pass."""
        return nn.Identity()


def _make_stubs() -> dict[str, types.ModuleType]:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a forward pass does not need this")

    values: dict[str, dict[str, Any]] = {
        "mmcv": {},
        "mmcv.cnn": {"build_conv_layer": refuse, "build_norm_layer": refuse},
        "mmcv.cnn.bricks": {"DropPath": refuse},
        "mmcv.cnn.bricks.transformer": {"FFN": refuse, "MultiheadAttention": refuse},
        "mmengine": {},
        "mmengine.config": {"ConfigDict": dict},
        "mmengine.dist": {"get_dist_info": refuse},
        "mmengine.model": {"BaseModule": _BaseModule, "ModuleList": nn.ModuleList},
        "mmengine.structures": {"InstanceData": object, "PixelData": object},
        "mmengine.utils": {
            "digit_version": lambda version: tuple(int(part) for part in version.partition("+")[0].split(".")[:3]),
            "is_seq_of": refuse,
            "to_2tuple": refuse,
        },
        "mmengine.utils.dl_utils": {"TORCH_VERSION": torch.__version__},
        "mmpose.codecs": {},
        "mmpose.codecs.utils": {"get_simcc_normalized": refuse},
        "mmpose.evaluation": {},
        "mmpose.evaluation.functional": {"simcc_pck_accuracy": refuse},
        "mmpose.registry": {"KEYPOINT_CODECS": _Registry(), "MODELS": _Registry()},
        "mmpose.structures": {"PoseDataSample": object},
    }
    stubs = {}
    for name, attributes in values.items():
        stubs[name] = types.ModuleType(name)
        vars(stubs[name]).update(attributes)
    return stubs
