"""Any healthy config is exported, whatever its widths, and the graph is the reference model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flash_export.config import MAX_OPSET, MIN_OPSET, ExportOptions
from flash_export.exporters.export import export_onnx
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.gau import GauConfig, GauModel

if TYPE_CHECKING:
    from flash_export.models.base import ModelConfig, ReferenceModel

onnxruntime = pytest.importorskip("onnxruntime")

WIDTHS = st.one_of(st.integers(1, 16), st.integers(17, 140))
SHARED: dict[str, st.SearchStrategy[Any]] = {
    "vocab_size": st.integers(1, 300),
    "dim": WIDTHS.map(lambda half: 2 * half),
    "depth": st.integers(1, 2),
    "hidden_dim": WIDTHS,
    "causal": st.booleans(),
    "norm_type": st.sampled_from(FlashConfig.CHOICES["norm_type"]),
    "attention_fn": st.sampled_from(FlashConfig.CHOICES["attention_fn"]),
    "mask_divisor": st.sampled_from(FlashConfig.CHOICES["mask_divisor"]),
}
CONFIGS: st.SearchStrategy[ModelConfig] = st.one_of(
    st.builds(
        FlashConfig,
        **SHARED,
        qk_dim=st.integers(2, 140),
        chunk_size=st.integers(1, 80),
        shift_tokens=st.booleans(),
        sum_over_chunks=st.booleans(),
    ),
    st.builds(GauConfig, **SHARED, qk_dim=WIDTHS),
)
OPTIONS = st.builds(
    ExportOptions,
    opset=st.integers(MIN_OPSET, MAX_OPSET),
    mask=st.sampled_from((None, True, False)),
    max_batch=st.sampled_from((1, 3, 64)),
    max_seq_len=st.sampled_from((1, 2, 100, 65536)),
)


def build_model(config: ModelConfig) -> ReferenceModel:
    """Return a model whose branches all carry weight; a width more or less does not change the scale of its values."""
    torch.manual_seed(0)
    model: ReferenceModel = FlashModel(config) if isinstance(config, FlashConfig) else GauModel(config)  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim > 1 and not name.endswith(("gamma", "beta"))
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5 if is_matrix else 0.5)
    return model.requires_grad_(requires_grad=False).eval()


@pytest.mark.slow
@settings(deadline=None, max_examples=8)
@given(config=CONFIGS, options=OPTIONS)
def test_any_width_is_exported_and_agrees_with_the_reference(config: ModelConfig, options: ExportOptions) -> None:
    check_export(config, options)


@pytest.mark.parametrize(
    ("chunk_size", "qk_dim"),
    [(1, 3), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((17, 49), (26, 78)))],
)
def test_joined_heads_are_not_mistaken_for_traced_sizes(chunk_size: int, qk_dim: int) -> None:
    """Four heads are as wide as the traced number of chunks, the traced length or the padded one."""
    check_export(FlashConfig(1364, 54, 1, 31, chunk_size, qk_dim), ExportOptions())


def check_export(config: ModelConfig, options: ExportOptions) -> None:
    """Export a model of this config and compare the graph with it at lengths around its chunks."""
    model = build_model(config)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder, "checkpoint"))
        bundle = export_onnx(Path(folder, "checkpoint"), Path(folder, "bundle"), options=options)
        session = onnxruntime.InferenceSession(bundle.get_graph_path(), providers=["CPUExecutionProvider"])
    has_mask = bundle.get_graph().has_mask
    vocab_size, window = config.to_dict()["vocab_size"], config.interface.window
    generator = torch.Generator().manual_seed(1)
    batch = min(2, options.max_batch)
    for seq_len in {1, window - 1, window, window + 1, 3 * window + 2, 150}:
        if seq_len not in bundle.get_graph().axes["seq"]:
            continue
        input_ids = torch.randint(0, vocab_size, (batch, seq_len), generator=generator)
        lengths = torch.randint(1, seq_len + 1, (batch, 1), generator=generator)
        valid = torch.arange(seq_len) < lengths if has_mask else torch.ones_like(input_ids, dtype=torch.bool)
        feeds = {"input_ids": input_ids.numpy()} | ({"attention_mask": valid.long().numpy()} if has_mask else {})
        actual = session.run(None, feeds)[0]
        expected = model(input_ids, valid.long() if has_mask else None).numpy()
        assert actual.shape == expected.shape
        error = np.abs(actual - expected)[valid.numpy()].max() / np.abs(expected).max()
        assert error < 1e-4, f"batch {batch}, length {seq_len}"
