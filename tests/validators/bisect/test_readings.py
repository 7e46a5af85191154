"""What the graph holds in its own terms is, in the reference's, what the reference holds: for every dialect."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flash_export.data.sources import Data, RandomSource
from flash_export.exporters.lowering.registry import lower_model
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.gau import GauConfig, GauModel
from flash_export.probes import Probe, ProbeMap
from flash_export.runtime.eager import EagerRunner
from flash_export.validators.bisect.quantities import rank_probe
from flash_export.validators.bisect.readings import ModelReader, Reading, restore_reading, restore_terms
from flash_export.validators.bisect.runs import compare_run
from flash_export.validators.lengths import Cell, build_batch

if TYPE_CHECKING:
    from torch import Tensor

    from flash_export.data.batch import Batch
    from flash_export.models.base import ReferenceModel

dialects = st.fixed_dictionaries(
    {
        "causal": st.booleans(),
        "norm_type": st.sampled_from(["scalenorm", "layernorm"]),
        "attention_fn": st.sampled_from(["relu2", "laplace", "laplace_wide"]),
        "mask_divisor": st.sampled_from(["valid", "padded"]),
        "qk_dim": st.sampled_from([2, 20, 37]),
        "dim": st.sampled_from([2, 10, 34]),
        "hidden_dim": st.sampled_from([3, 15]),
    }
)
flash_configs = st.builds(
    lambda dialect, chunk_size, shift, total: FlashConfig(
        vocab_size=23, depth=2, chunk_size=chunk_size, shift_tokens=shift, sum_over_chunks=total, **dialect
    ),
    dialects,
    st.sampled_from([1, 5, 16]),
    st.booleans(),
    st.booleans(),
)
gau_configs = st.builds(lambda dialect: GauConfig(vocab_size=23, depth=2, **dialect), dialects)


class LoweredSource:
    """A lowered model that is read at its marks, untraced."""

    def __init__(self, model: ReferenceModel) -> None:
        self._model, self._config, self.probes = lower_model(model), model.config, ProbeMap("forward", {}, ())

    def read(self, cell: Cell, inputs: Batch) -> Reading:
        arrays: dict[str, np.ndarray] = {}
        found: list[Probe] = []

        def record(
            x: Tensor, quantity: str, scale: float = 1.0, order: str = "", axis: int = -1, length_power: int = 0
        ) -> Tensor:
            block = sum(probe.name.endswith(f".{quantity}") for probe in found)
            name = quantity if quantity == "embedding" else f"layers.{block}.{quantity}"
            found.append(Probe(name, name, scale, order or None, axis, length_power))
            arrays[name] = x.numpy()
            return x

        with pytest.MonkeyPatch.context() as patch:
            for family in ("flash", "gau"):
                patch.setattr(f"flash_export.exporters.lowering.{family}.mark", record)
            mask = torch.from_numpy(inputs.valid).long() if cell.masked else None
            arrays["logits"] = self._model(torch.from_numpy(inputs.arrays["input_ids"]), mask).numpy()
        found.append(Probe("logits", "logits"))
        orders = {name: tuple(order) for name, order in self._model.orders.items()}
        self.probes = ProbeMap("forward", orders, tuple(found))
        return restore_reading(arrays, self.probes, self._config, inputs)


def randomise(model: ReferenceModel, seed: int) -> ReferenceModel:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.requires_grad_(requires_grad=False).eval()


def check_every_probe(model: ReferenceModel, cell: Cell) -> None:
    double = copy.deepcopy(model)
    lowered = LoweredSource(model)
    lowered.read(cell, build_batch(cell, Data(RandomSource(model.config.interface))))  # tells what is marked
    reference, eager = EagerRunner(double, precision="fp64"), EagerRunner(model)
    sources = (ModelReader(double, reference), lowered, ModelReader(model, eager))
    run = compare_run(cell, model.config, lowered.probes.probes, sources, "fp32")
    assert run.fault is None
    assert len(run.rows) == 2 * (12 if isinstance(model, FlashModel) else 8) + 2
    assert {row.status for row in run.rows} == {"clean"}


cells = st.builds(
    lambda batch, seq_len, masked: Cell(batch, seq_len, masked and batch * seq_len > 1),
    st.integers(1, 3),
    st.integers(1, 40),
    st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(flash_configs, cells, st.integers(0, 2**16))
def test_every_mark_of_flash_is_the_reference_s_quantity(config: FlashConfig, cell: Cell, seed: int) -> None:
    check_every_probe(randomise(FlashModel(config), seed), cell)


@settings(max_examples=30, deadline=None)
@given(gau_configs, cells, st.integers(0, 2**16))
def test_every_mark_of_gau_is_the_reference_s_quantity(config: GauConfig, cell: Cell, seed: int) -> None:
    check_every_probe(randomise(GauModel(config), seed), cell)


def test_probes_are_in_the_order_of_computation() -> None:
    names = ["embedding", "layers.0.normed", "layers.0.out", "layers.1.normed", "layers.1.kv", "logits"]
    shuffled = {names[index] for index in (3, 0, 5, 1, 4, 2)}
    config = FlashConfig(vocab_size=23, dim=4, depth=2, hidden_dim=4, qk_dim=2)
    assert sorted(shuffled, key=lambda name: rank_probe(config, name)) == names


def test_terms_are_scaled_ordered_and_multiplied_by_the_length() -> None:
    graph = np.arange(12.0).reshape(2, 2, 3)
    inverse = {"turned": np.argsort([2, 0, 1])}
    restored = restore_terms(graph, Probe("q", "q", 2.0, "turned", -1, -1), inverse, np.array([2, 4]))
    for row, count in ((0, 2), (1, 4)):
        for index, original in enumerate([2, 0, 1]):
            np.testing.assert_allclose(restored[row, :, original], graph[row, :, index] * 2 / count)


def test_reading_forgets_what_was_taken() -> None:
    reading = Reading({"logits": np.ones(3)}, lambda _, values: values)
    assert reading.names == {"logits"}
    reading.take("logits")
    assert reading.names == set()
