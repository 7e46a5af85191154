"""clearvoice 0.1.2's own model files of MossFormer2, without what the package depends on.

The package's ``__init__`` wants everything from audio files to face detection; only the folders of two models are
imported. torchinfo, which they import and do not use, is replaced by nothing. What computes is the package's own text,
with the rotary embedding that is installed: of what is called here, release 0.9.1 computes the same as 0.8.3, which
clearvoice pins.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

ORACLES = Path(sys.prefix) / "oracles"
RELEASE = "clearvoice==0.1.2"
_FOLDERS = ("", "models", "models.mossformer2_se", "models.mossformer2_ss")
_FILES = (
    *("se.mossformer2", "se.mossformer2_block", "se.mossformer2_se_wrapper"),
    *("ss.mossformer2", "ss.mossformer2_block"),
)


@dataclass(frozen=True)
class ClearvoiceRelease:
    """The files of the two models: speech enhancement, its wrapper, and speech separation."""

    enhancement: Any
    enhancement_block: Any
    wrapper: Any
    separation: Any
    separation_block: Any

    def build_enhancement(
        self, in_channels: int, dim: int, out_channels: int, num_speakers: int = 2, **sizes: int
    ) -> nn.Module:
        """Build ``TestNet``, what a checkpoint holds, around a mask network of these sizes."""
        network = functools.partial(self.enhancement.MossFormer_MaskNet, num_blocks=sizes.pop("depth"))
        with _change_defaults(self.enhancement, self.enhancement_block.Gated_FSMN_Block, **sizes):
            mask_net = network(in_channels, dim, out_channels, num_spks=num_speakers)
        model: nn.Module = self.wrapper.TestNet.__new__(self.wrapper.TestNet)
        nn.Module.__init__(model)
        model.mossformer = mask_net
        return model

    def build_separation(self, dim: int, num_speakers: int = 2, kernel_size: int = 16, **sizes: int) -> nn.Module:
        """Build ``MossFormer`` of these sizes; its decoder takes as many channels as the encoder gives, ``dim``."""
        network = functools.partial(self.separation.MossFormer, num_blocks=sizes.pop("depth"))
        with _change_defaults(self.separation, self.separation_block.Gated_FSMN_Block_Dilated, **sizes):
            return network(dim, dim, kernel_size=kernel_size, num_spks=num_speakers)


@contextlib.contextmanager
def _change_defaults(
    model: Any, memory: Any, qk_dim: int = 128, chunk_size: int = 256, fsmn_dim: int = 256
) -> Iterator[None]:
    """Set sizes that no constructor asks for: those of queries, chunks and the memory, whose width comes first."""
    attention = functools.partial(model.MossFormerM, group_size=chunk_size, query_key_dim=qk_dim)
    defaults = (fsmn_dim, *memory.__init__.__defaults__[1:])
    with (
        mock.patch.object(model, "MossFormerM", attention),
        mock.patch.object(memory.__init__, "__defaults__", defaults),
    ):
        yield


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Give every weight a random value, such that values keep their scale and attention matters; to evaluation mode."""
    torch.manual_seed(seed)
    model.double().eval().requires_grad_(requires_grad=False)
    for name, parameter in model.named_parameters():
        if name.endswith(("gamma", "beta")):
            parameter.copy_(3 * torch.randn_like(parameter))
        elif parameter.ndim > 1:
            parameter.copy_(1.5 * torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
        elif not name.endswith("freqs"):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def import_clearvoice() -> ClearvoiceRelease:
    """Import the files, and leave no module behind; skips where no oracle was installed at all."""
    if not ORACLES.is_dir():
        pytest.skip(f"{ORACLES} does not exist; make test installs it")
    folder = ORACLES / RELEASE / "clearvoice"
    before = dict(sys.modules)
    with _write_no_bytecode():
        try:
            sys.modules["torchinfo"] = _make_torchinfo()
            for name in _FOLDERS:
                package = types.ModuleType(f"clearvoice.{name}".rstrip("."))
                package.__path__ = [str(folder.joinpath(*name.split(".")))]
                sys.modules[package.__name__] = package
            modules = [importlib.import_module(f"clearvoice.models.mossformer2_{name}") for name in _FILES]
        finally:
            for name in sys.modules.keys() - before.keys():
                del sys.modules[name]
    for module in modules:
        assert Path(str(module.__file__)).is_relative_to(folder)
    return ClearvoiceRelease(*modules)


@contextlib.contextmanager
def _write_no_bytecode() -> Iterator[None]:
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _make_torchinfo() -> types.ModuleType:
    module = types.ModuleType("torchinfo")
    vars(module)["summary"] = None
    return module
