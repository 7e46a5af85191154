"""Weights of any size: wherever the eager model is finite, the graph is, and no further from float64 than eager is."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flash_export.config import ExportOptions
from flash_export.exporters.export import export_onnx
from flash_export.exporters.lowering.registry import lower_model
from flash_export.limits import ERROR_BUDGETS
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.gau import GauConfig, GauModel
from flash_export.runtime.ort import OrtRunner
from flash_export.validators.validate import validate_bundle
from flash_export.validators.validation_options import ValidationOptions

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.models.base import ReferenceModel

SIZES: dict[str, Any] = {"dim": 8, "hidden_dim": 12, "qk_dim": 8, "causal": True}
FAMILIES = ("flash", "gau")
FUNCTIONS = ("relu2", "laplace")


def build_model(family: str, attention_fn: str, factor: float, *, seed: int = 0, depth: int = 2) -> ReferenceModel:
    torch.manual_seed(seed)
    if family == "flash":
        model: ReferenceModel = FlashModel(
            FlashConfig(19, depth=depth, chunk_size=4, attention_fn=attention_fn, **SIZES)
        )
    else:
        model = GauModel(GauConfig(19, depth=depth, attention_fn=attention_fn, **SIZES))
    for parameter in model.parameters():
        parameter.data.normal_(std=0.5).mul_(factor)
    return model.requires_grad_(requires_grad=False).eval()


def run(model: torch.nn.Module, ids: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        logits: torch.Tensor = model(ids)
    return logits.double().numpy()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(FAMILIES),
    st.sampled_from(FUNCTIONS),
    st.integers(-40, 10),
    st.integers(1, 11),
    st.integers(0, 2**16),
)
def test_lowered_model_is_finite_and_right_where_eager_is(
    family: str, attention_fn: str, power: int, seq_len: int, seed: int
) -> None:
    model = build_model(family, attention_fn, 10.0**power, seed=seed)
    ids = torch.randint(0, 19, (1, seq_len), generator=torch.Generator().manual_seed(seed))
    eager, exact = run(model, ids), run(copy.deepcopy(model).double(), ids)
    if not (np.isfinite(eager).all() and np.isfinite(exact).all()):
        return
    lowered, scale = run(lower_model(model), ids), float(np.abs(exact).max())
    noise = float(np.abs(eager - exact).max())
    assert np.isfinite(lowered).all()
    # A token hidden badly would be off by as much as the whole output; a few tokens have little noise by chance.
    assert np.abs(lowered - exact).max() <= max(ERROR_BUDGETS["fp32"].compute_limit(scale, noise), 1e-3 * scale)


@pytest.mark.parametrize(
    ("family", "attention_fn"),
    [
        ("flash", "relu2"),
        ("gau", "laplace"),
        pytest.param("flash", "laplace", marks=pytest.mark.slow),
        pytest.param("gau", "relu2", marks=pytest.mark.slow),
    ],
)
def test_large_scores_do_not_see_the_future(family: str, attention_fn: str, tmp_path: Path) -> None:
    model = build_large_scores(family, attention_fn)
    model.save_pretrained(tmp_path / "model")
    ids = np.array([[3, 1, 4, 1, 5, 9, 2, 6]])
    assert np.isfinite(run(model, torch.from_numpy(ids))).all(), "what is finite in eager has to be in the graph"
    bundle = export_onnx(tmp_path / "model", tmp_path / "bundle", options=ExportOptions(max_seq_len=16, max_batch=3))
    other = np.concatenate((ids[:, :3], ids[:, 3:] + 1), axis=1)
    mask = {"attention_mask": np.ones_like(ids)} if bundle.get_graph().has_mask else {}
    with OrtRunner(bundle.get_graph(), bundle.get_graph_path()) as runner:
        before, after = (runner.run({"input_ids": tokens, **mask})["logits"][:, :3] for tokens in (ids, other))
    np.testing.assert_array_equal(before, after)
    backends = [name for name in ("ort-cpu", "stream:ort-cpu") if name == "ort-cpu" or len(bundle.manifest.graphs) > 1]
    options = ValidationOptions(seq_lens=(3, 4, 5, 11), batches=(1,), backends=tuple(backends), latency_budget_s=0.0)
    report = validate_bundle(bundle, options)
    assert report, [(row.backend, row.check, row.seq_len, row.reason) for row in report.rows if row.status == "failed"]


def build_large_scores(family: str, attention_fn: str) -> ReferenceModel:
    """Build a model whose scores pass 1e9, and whose outputs are ordinary all the same."""
    model = build_model(family, attention_fn, 1.0, depth=1)
    for name, parameter in model.named_parameters():
        if "offset" in name:
            parameter.mul_(1e5)
        elif "to_hidden" in name:
            parameter.mul_(1e-2)
    return model
