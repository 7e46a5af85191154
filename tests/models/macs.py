"""Multiplications of a reference model's products and convolutions, counted while it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def count_weight_macs(model: nn.Module, *inputs: torch.Tensor) -> int:
    """Run a model and count the multiplications by weights; those between activations are not seen."""
    counted = 0

    def count(module: nn.Module, given: Any, output: torch.Tensor) -> None:
        nonlocal counted
        if isinstance(module, nn.ConvTranspose1d):
            counted += given[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            counted += output.numel() * module.weight[0].numel()

    for module in model.modules():
        module.register_forward_hook(count)
    model(*inputs)
    return counted
