"""The trained SimCC head in the package is what its paper says; half precision and int8 cost it next to nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import flash_export
from flash_export.config import ExportOptions, QuantizeOptions
from flash_export.exporters.export import export_onnx
from flash_export.models.checkpoint import load_pretrained
from flash_export.quantization.quantize import quantize_bundle
from flash_export.validators.trade_off.compare import CompareOptions, compare_bundles

if TYPE_CHECKING:
    from numpy.typing import NDArray

FOLDER = Path(flash_export.__file__).parent / "assets" / "stick-figures"
TRAINING: dict[str, Any] = json.loads((FOLDER / "training.json").read_text())


def read_heldout() -> tuple[torch.Tensor, NDArray[np.float32]]:
    with np.load(FOLDER / "heldout.npz") as data:
        return torch.from_numpy(data["features"]), data["target"]


def test_error_on_held_out_figures_is_the_stated_one() -> None:
    features, target = read_heldout()
    scores = load_pretrained(FOLDER)(features)
    found = np.stack([one.numpy().argmax(-1) / 2 for one in scores], axis=-1)  # two bins a pixel
    error = float(np.sqrt(np.square(found - target).sum(-1)).mean())
    assert error == pytest.approx(TRAINING["heldout_pixels"], abs=0.02)
    assert error < 2


def test_the_joints_are_found_and_not_their_mean() -> None:
    _, target = read_heldout()
    guessed = np.linalg.norm(target - target.mean(axis=0), axis=-1).mean()
    assert TRAINING["heldout_pixels"] < guessed / 5


def test_what_half_precision_and_int8_cost_is_told_in_pixels(tmp_path: Path) -> None:
    bundle = export_onnx(FOLDER, tmp_path / "fp32")
    half = export_onnx(FOLDER, tmp_path / "fp16", options=ExportOptions(precision="fp16"))
    int8 = quantize_bundle(bundle, tmp_path / "int8", options=QuantizeOptions("int8", budget=0.02, threads=1))
    report = compare_bundles([bundle, half, int8], CompareOptions(threads=1, latency_budget_s=0))
    scores = {entry.name: entry.quality.score for entry in report.entries if entry.quality is not None}
    assert scores["fp32"] == pytest.approx(TRAINING["heldout_pixels"], abs=0.02)
    for name in ("fp16", "int8"):
        assert scores[name] == pytest.approx(scores["fp32"], abs=0.1)
