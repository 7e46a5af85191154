"""Frequencies that were rounded with the weights: recognised by value, recomputed, or warned about."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from flash_export.models.checkpoint import load_checkpoint, load_pretrained
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.frequencies import restore_frequencies
from flash_export.models.gau import GauConfig, GauModel

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

FORMULA = 1.0 / 10000 ** (torch.arange(0, 32, 2).float() / 32)
ROUNDINGS = {
    "fp16": [torch.float16],
    "bf16": [torch.bfloat16],
    "fp16, then bf16": [torch.float16, torch.bfloat16],
    "bf16, then fp32": [torch.bfloat16, torch.float32],
    "fp16, then fp64": [torch.float16, torch.float64],
}
RECOMPUTED = "frequencies, stored rounded to half precision, were recomputed: a"
KEPT = "warning: frequencies are rounded to half precision and not those of the formula, so that they are kept"


def round_in_turn(values: Tensor, dtypes: list[torch.dtype]) -> Tensor:
    for dtype in dtypes:
        values = values.to(dtype)
    return values


@pytest.mark.parametrize("dtypes", ROUNDINGS.values(), ids=ROUNDINGS)
def test_rounded_formula_is_recomputed(dtypes: list[torch.dtype]) -> None:
    stored = round_in_turn(FORMULA, dtypes)
    assert not torch.equal(stored.float(), FORMULA)
    restored, notes = restore_frequencies({"a": stored, "weight": torch.ones(1)}, {"a": FORMULA})
    assert restored.keys() == {"a"}
    assert torch.equal(restored["a"], FORMULA)
    assert notes == (RECOMPUTED,)


@pytest.mark.parametrize("dtypes", ROUNDINGS.values(), ids=ROUNDINGS)
def test_other_rounded_frequencies_are_kept_with_a_warning(dtypes: list[torch.dtype]) -> None:
    stored = round_in_turn(FORMULA * 1.3, dtypes)
    restored, notes = restore_frequencies({"a": stored}, {"a": FORMULA})
    assert torch.equal(restored["a"], stored.float())
    assert len(notes) == 1
    assert notes[0].startswith(KEPT)
    assert notes[0].endswith("inexact: a")


@pytest.mark.parametrize("stored", [FORMULA, FORMULA.double(), FORMULA * 1.3, torch.ones(1)])
def test_frequencies_that_were_not_rounded_stay(stored: Tensor) -> None:
    formula = FORMULA if len(stored) > 1 else stored
    restored, notes = restore_frequencies({"a": stored}, {"a": formula})
    assert torch.equal(restored["a"], stored.float())
    assert notes == ()


@pytest.mark.parametrize(
    "model",
    [
        FlashModel(FlashConfig(17, 12, 2, 18, chunk_size=16, qk_dim=20)),
        FlashModel(FlashConfig(17, 12, 2, 18, chunk_size=16, qk_dim=7)),
        GauModel(GauConfig(17, 12, 2, 18, qk_dim=20)),
    ],
)
def test_formulas_are_all_buffers_of_a_model(model: FlashModel | GauModel) -> None:
    formulas, buffers = model.compute_frequencies(), dict(model.named_buffers())
    assert formulas.keys() == buffers.keys()
    assert all(torch.equal(formulas[name], buffer) for name, buffer in buffers.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored_as", [None, torch.float32])
def test_model_that_was_cast_whole_is_right_at_distant_positions(
    tmp_path: Path, dtype: torch.dtype, stored_as: torch.dtype | None
) -> None:
    torch.manual_seed(0)
    model = FlashModel(FlashConfig(17, 32, 1, 32, chunk_size=16, qk_dim=32, causal=True)).eval()
    model.save_pretrained(tmp_path, dtype)
    input_ids = torch.randint(17, (1, 2000))
    with torch.no_grad():
        expected = load_pretrained(tmp_path)(input_ids)  # weights rounded, frequencies not
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.to(dtype).to(stored_as or dtype) for name, tensor in load_file(path).items()}, path)
    loaded = load_checkpoint(tmp_path)
    assert loaded.imported.notes == (
        "frequencies, stored rounded to half precision, were recomputed: abs_pos_emb.inv_freq, rotary_pos_emb.freqs",
    )
    with torch.no_grad():
        assert torch.equal(loaded.model(input_ids), expected)
