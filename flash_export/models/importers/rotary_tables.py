"""The table of rotary frequencies, which libraries of FLASH share between the layers and save with each."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from flash_export.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

ROTARY_KEY = re.compile(r"layers\.\d+\.rotary_pos_emb\.freqs")


def merge_rotary_tables(tensors: Mapping[str, Tensor], library: str) -> dict[str, Tensor]:
    """Replace the table of each layer by one.

    Raises:
        CheckpointError: They differ.
    """
    tables = {name: tensor for name, tensor in tensors.items() if ROTARY_KEY.fullmatch(name)}
    merged = {name: tensor for name, tensor in tensors.items() if name not in tables}
    if tables:
        first_name, first = next(iter(tables.items()))
        for name, table in tables.items():
            if not torch.equal(table, first):
                raise CheckpointError(
                    f"{name} differs from {first_name}; {library} shares one table between all layers, "
                    "so these are not the weights of one of its models"
                )
        merged["rotary_pos_emb.freqs"] = first
    return merged
