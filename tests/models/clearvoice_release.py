"""clearvoice 0.1.2's own model files of MossFormer2, without what the package depends on.

The rotary embedding is the one that is installed: of what is called here, release 0.9.1 computes the same as 0.8.3,
which clearvoice pins.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flash_export.originals.clearvoice import FILES, change_defaults
from tests.models.oracles import import_oracle

RELEASE = "clearvoice==0.1.2"


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
        with change_defaults(self.enhancement, self.enhancement_block.Gated_FSMN_Block, **sizes):
            mask_net = network(in_channels, dim, out_channels, num_spks=num_speakers)
        model: nn.Module = self.wrapper.TestNet.__new__(self.wrapper.TestNet)
        nn.Module.__init__(model)
        model.mossformer = mask_net
        return model

    def build_separation(self, dim: int, num_speakers: int = 2, kernel_size: int = 16, **sizes: int) -> nn.Module:
        """Build ``MossFormer`` of these sizes; its decoder takes as many channels as the encoder gives, ``dim``."""
        network = functools.partial(self.separation.MossFormer, num_blocks=sizes.pop("depth"))
        with change_defaults(self.separation, self.separation_block.Gated_FSMN_Block_Dilated, **sizes):
            return network(dim, dim, kernel_size=kernel_size, num_spks=num_speakers)


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
    return ClearvoiceRelease(*import_oracle(RELEASE, FILES))
