"""Marks tell which value is which quantity, in the right terms, and leave nothing in the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import pytest
import torch

from flash_export.config import ExportOptions
from flash_export.exporters.graphs import build_graph_module, describe_graphs
from flash_export.exporters.lowering.registry import lower_model
from flash_export.exporters.marks import MARK_DOMAIN, MARK_TYPE, mark, set_marks_aside, take_marks
from flash_export.exporters.traced_sizes import choose_traced_sizes
from flash_export.exporters.tracing import TracedGraph, trace_model
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.gau import GauConfig, GauModel

if TYPE_CHECKING:
    from flash_export.models.base import ModelConfig, ReferenceModel

SIZES: dict[str, Any] = {"vocab_size": 29, "dim": 22, "depth": 2, "hidden_dim": 33, "qk_dim": 37}
CONFIGS: dict[str, ModelConfig] = {
    "causal": FlashConfig(**SIZES, chunk_size=8, causal=True),
    "laplace": FlashConfig(**SIZES, chunk_size=8, attention_fn="laplace", norm_type="layernorm", shift_tokens=False),
    "gau": GauConfig(**SIZES, norm_type="scalenorm"),
}


def build_model(config: ModelConfig) -> ReferenceModel:
    torch.manual_seed(0)
    model = FlashModel(config) if isinstance(config, FlashConfig) else GauModel(config)  # type: ignore[arg-type]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(requires_grad=False).eval()


def trace(model: ReferenceModel, name: str) -> TracedGraph:
    graph = describe_graphs(model.config, ExportOptions())[name]
    module = build_graph_module(name, lower_model(model))
    return trace_model(module, graph, choose_traced_sizes(module, model.config.interface, graph))


def serialize(traced: TracedGraph) -> bytes:
    return bytes(ir.to_proto(traced.model).SerializeToString(deterministic=True))


@pytest.mark.parametrize(
    ("name", "graph"),
    [
        ("gau", "forward"),
        pytest.param("causal", "prefill", marks=pytest.mark.slow),
        pytest.param("causal", "forward", marks=pytest.mark.slow),
        pytest.param("laplace", "forward", marks=pytest.mark.slow),
    ],
)
def test_marks_cover_the_reference_and_leave_no_trace(name: str, graph: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(CONFIGS[name])
    marked = trace(model, graph)
    for family in ("flash", "gau"):
        monkeypatch.setattr(f"flash_export.exporters.lowering.{family}.mark", lambda x, *_, **__: x)
    plain = trace(model, graph)

    assert serialize(marked) == serialize(plain)
    assert plain.probes == ()
    values = {value.name for node in marked.model.graph for value in node.outputs}
    assert {probe.tensor for probe in marked.probes} <= values
    assert len({probe.tensor for probe in marked.probes}) == len(marked.probes)
    if graph == "forward":
        names: set[str] = set()
        with model.read_probes(lambda name, _: names.add(name)):
            model(torch.tensor([[1, 2, 3]]))
        assert {probe.name for probe in marked.probes} == names


def test_mark_returns_what_it_marks() -> None:
    x = torch.arange(6.0).reshape(1, 2, 3)
    assert torch.equal(mark(x, "value", 0.5, "heads", -2, -1), x)
    torch.library.opcheck(torch.ops.flash_export.mark, (x, "value", 0.5, "heads", -2, -1))


def test_value_that_only_its_mark_uses_is_refused() -> None:
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=[2])
    used, dead = ir.node("Relu", [x]), ir.node("Exp", [x])
    attributes: dict[str, Any] = {"quantity": "out", "scale": 1.0, "order": "", "axis": -1, "length_power": 0}
    marking = ir.node(MARK_TYPE, [dead.outputs[0]], attributes=attributes, domain=MARK_DOMAIN)
    graph = ir.Graph([x], [used.outputs[0]], nodes=[used, dead, marking], opset_imports={"": 20, MARK_DOMAIN: 1})
    set_marks_aside(graph)
    with pytest.raises(RuntimeError, match="out is computed, but nothing in the graph uses it"):
        take_marks(ir.Model(graph, ir_version=10))
