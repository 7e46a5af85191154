from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from flash_export.data.sources import RandomSource
from flash_export.models.flash_quad import FlashQuadConfig, FlashQuadModel
from flash_export.validators.ranges.measure import measure_ranges

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class Eager:
    """Runs a model on token ids."""

    def __init__(self, model: FlashQuadModel) -> None:
        self.model = model

    def run(self, inputs: dict[str, np.ndarray]) -> Any:
        return self.model(torch.from_numpy(inputs["input_ids"]))


def test_last_norm_reads_what_stands_between_it_and_the_last_block() -> None:
    torch.manual_seed(0)
    model = FlashQuadModel(FlashQuadConfig(17, dim=8, depth=2, hidden_dim=12, qk_dim=6))
    model.requires_grad_(requires_grad=False)
    batch = RandomSource(model.config.interface).draw(2, 5)
    seen: dict[str, Tensor] = {}
    with model.read_probes(seen.__setitem__):
        model(torch.from_numpy(batch.arrays["input_ids"]))
    runner: Any = Eager(model)
    ranges = measure_ranges(model, runner, batch)
    read_by = {"layers.0": "embedding", "layers.1": "layers.0.out", "": "transform"}
    squares = {f"{norm}.norm_squares".lstrip("."): seen[name].square().sum(-1) for norm, name in read_by.items()}
    assert ranges.keys() == seen.keys() | squares.keys()
    for name, values in squares.items():
        assert ranges[name].max_abs == pytest.approx(float(values.max()))
