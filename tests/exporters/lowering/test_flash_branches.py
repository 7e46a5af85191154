"""FLASH with one branch alone, exported: lowered and traced, against its reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flash_export.config import FORWARD, ExportOptions
from flash_export.exporters.export import export_onnx
from flash_export.exporters.lowering.precision import Precision
from flash_export.exporters.lowering.registry import lower_model
from flash_export.models.flash import GLOBAL, LOCAL, FlashConfig, FlashModel
from flash_export.runtime.ort import OrtRunner
from flash_export.validators.bisect.bisect import BisectOptions, bisect_bundle
from tests.models.multihead_models import compute_error

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

RELATIVE_TOLERANCE = 1e-5  # of the output's scale: fp32 rounding in another order
HALF_ROUNDING = 2e-2
VOCAB_SIZE, CHUNK_SIZE = 19, 4


def build_model(branch: str, seed: int = 0, *, causal: bool, attention_fn: str = "relu2") -> FlashModel:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"dim": 8, "depth": 2, "hidden_dim": 12, "qk_dim": 6, "chunk_size": CHUNK_SIZE}
    model = FlashModel(FlashConfig(VOCAB_SIZE, **sizes, causal=causal, attention_fn=attention_fn, branches=branch))
    model.requires_grad_(requires_grad=False).eval()
    for name, parameter in model.named_parameters():  # attention is to matter
        parameter.normal_(std=1 if "qk_offset_scale" in name else 0.4)
    return model


def make_batch(lengths: list[int]) -> tuple[Tensor, Tensor]:
    input_ids = torch.randint(VOCAB_SIZE, (len(lengths), max(lengths)))
    return input_ids, (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


@settings(max_examples=40)
@given(
    branch=st.sampled_from((LOCAL, GLOBAL)),
    causal=st.booleans(),
    attention_fn=st.sampled_from(("relu2", "laplace")),
    lengths=st.lists(st.sampled_from((1, 3, 4, 5, 8, 17)), min_size=1, max_size=3),
    seed=st.integers(0, 2**16),
)
def test_lowered_model_is_the_reference(
    branch: str, causal: bool, attention_fn: str, lengths: list[int], seed: int
) -> None:
    model = build_model(branch, seed, causal=causal, attention_fn=attention_fn)
    lowered, half = lower_model(model), lower_model(model, Precision("fp16"))
    input_ids, mask = make_batch(lengths)
    expected, valid = model.double()(input_ids, mask), mask.bool()
    assert compute_error(model(input_ids), lowered(input_ids)) <= RELATIVE_TOLERANCE
    assert compute_error(expected[valid], lowered(input_ids, mask)[valid]) <= RELATIVE_TOLERANCE
    assert compute_error(expected[valid], half(input_ids, mask)[valid]) <= HALF_ROUNDING


@pytest.mark.parametrize(("branch", "causal"), [(LOCAL, True), (GLOBAL, False)])
def test_graph_is_the_reference_at_every_quantity(branch: str, causal: bool, tmp_path: Path) -> None:
    model = build_model(branch, causal=causal)
    model.save_pretrained(tmp_path / "model")
    bundle = export_onnx(tmp_path / "model", tmp_path / "bundle", options=ExportOptions(max_seq_len=64))
    assert list(bundle.manifest.graphs) == [FORWARD]  # no state
    names = {probe.name for probe in bundle.read_probes().probes}
    first, *inner = model.config.quantities
    assert names == {first, "logits", *(f"layers.{index}.{name}" for index in (0, 1) for name in inner)}
    assert bisect_bundle(bundle, BisectOptions(threads=1))
    graph = bundle.get_graph()
    input_ids, mask = make_batch([17, 4, 1])
    feeds = {spec.name: one.numpy() for spec, one in zip(graph.inputs, (input_ids, mask), strict=False)}
    with OrtRunner(graph, bundle.get_graph_path()) as runner:
        logits = torch.from_numpy(runner.run(feeds)["logits"])
    valid = mask.bool()
    assert compute_error(model(input_ids, mask)[valid], logits[valid]) <= RELATIVE_TOLERANCE
