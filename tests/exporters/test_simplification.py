"""What the exporter's whole optimizer would still find to do in a simplified graph: nothing."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from onnxscript.optimizer import optimize_ir

from flash_export.config import ExportOptions
from flash_export.exporters.graphs import build_graph_module, describe_graphs
from flash_export.exporters.lowering.registry import lower_model
from flash_export.exporters.traced_sizes import choose_traced_sizes
from flash_export.exporters.tracing import trace_model
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.gau import GauConfig, GauModel

if TYPE_CHECKING:
    import onnx_ir as ir

    from flash_export.models.base import ReferenceModel

SIZES: dict[str, Any] = {"vocab_size": 29, "dim": 22, "depth": 2, "hidden_dim": 33, "qk_dim": 37}


def count_operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize(
    "model",
    [
        FlashModel(FlashConfig(**SIZES, chunk_size=8, causal=True)),
        FlashModel(FlashConfig(**SIZES, chunk_size=8, attention_fn="laplace", norm_type="layernorm")),
        FlashModel(FlashConfig(**SIZES, chunk_size=8, sum_over_chunks=False, mask_divisor="padded")),
        GauModel(GauConfig(**SIZES)),
        GauModel(GauConfig(**SIZES, causal=True, norm_type="scalenorm")),
    ],
    ids=["causal", "laplace", "chunk-sums", "gau", "gau-causal"],
)
def test_the_whole_optimizer_finds_nothing_more_to_do(model: ReferenceModel) -> None:
    lowered = lower_model(model).requires_grad_(requires_grad=False).eval()
    for name, graph in describe_graphs(model.config, ExportOptions()).items():
        module = build_graph_module(name, lowered)
        traced = trace_model(module, graph, choose_traced_sizes(module, model.config.interface.window, graph)).model
        before = count_operators(traced)
        optimize_ir(traced)
        assert count_operators(traced) == before, name
