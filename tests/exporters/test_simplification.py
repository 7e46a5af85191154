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

SIZES: dict[str, Any] = {"vocab_size": 29, "dim": 22, "depth": 1, "hidden_dim": 33, "qk_dim": 37}
SLOW = pytest.mark.slow


def count_operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(FlashConfig(**SIZES, chunk_size=8, causal=True), marks=SLOW),
        FlashConfig(**SIZES, chunk_size=8, attention_fn="laplace", norm_type="layernorm"),
        pytest.param(FlashConfig(**SIZES, chunk_size=8, sum_over_chunks=False, mask_divisor="padded"), marks=SLOW),
        GauConfig(**SIZES),
        pytest.param(GauConfig(**SIZES, causal=True, norm_type="scalenorm"), marks=SLOW),
    ],
    ids=["causal", "laplace", "chunk-sums", "gau", "gau-causal"],
)
def test_the_whole_optimizer_finds_nothing_more_to_do(config: FlashConfig | GauConfig) -> None:
    model = FlashModel(config) if isinstance(config, FlashConfig) else GauModel(config)
    lowered = lower_model(model).requires_grad_(requires_grad=False).eval()
    for name, graph in describe_graphs(config, ExportOptions()).items():
        module = build_graph_module(name, lowered)
        traced = trace_model(module, graph, choose_traced_sizes(module, config.interface, graph)).model
        before = count_operators(traced)
        optimize_ir(traced)
        assert count_operators(traced) == before, name
