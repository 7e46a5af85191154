"""Tracing once: our graphs need no decomposition, what does need it gets it, and our translations are right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from flash_export.bundle.manifest import AxisRange, GraphSpec
from flash_export.exporters.decomposition import COMPOSITES, decompose_only_if_needed
from flash_export.exporters.export import export_onnx
from flash_export.exporters.traced_sizes import TracedSizes
from flash_export.exporters.tracing import trace_model
from flash_export.interface import TensorSpec
from flash_export.models.flash_quad import FlashQuadConfig
from flash_export.models.gau import GauConfig
from flash_export.models.gau_alpha import GauAlphaConfig
from flash_export.models.registry import get_family

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flash_export.models.base import ModelConfig

SIZES: dict[str, Any] = {"dim": 8, "depth": 1, "hidden_dim": 12, "qk_dim": 4}


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> list[torch.export.ExportedProgram]:
    """Programs that were decomposed."""
    programs: list[torch.export.ExportedProgram] = []
    decompose = torch.export.ExportedProgram.run_decompositions

    def run(program: torch.export.ExportedProgram, *arguments: Any) -> torch.export.ExportedProgram:
        programs.append(program)
        return decompose(program, *arguments)

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", run)
    return programs


@pytest.mark.parametrize(
    "config",
    [GauConfig(29, **SIZES), GauAlphaConfig(29, **SIZES), FlashQuadConfig(29, **SIZES)],
    ids=lambda config: config.model_type,
)
def test_our_graphs_are_traced_once(
    config: ModelConfig, tmp_path: Path, decomposed: list[torch.export.ExportedProgram]
) -> None:
    get_family(config.model_type).model_class(config).save_pretrained(tmp_path / "checkpoint")
    export_onnx(tmp_path / "checkpoint", tmp_path / "bundle")
    assert decomposed == []


def take_apart(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return first - second


def narrow_to_the_length(x: torch.Tensor) -> torch.Tensor:
    return torch.cat((x, x), dim=1).narrow(1, 1, x.shape[1])


def transpose_and_convolve(x: torch.Tensor) -> torch.Tensor:
    kernel, planes = torch.arange(24.0).reshape(2, 3, 1, 4), x[:, :, None, :2].transpose(1, 3)
    return torch.nn.functional.conv_transpose2d(planes, kernel, torch.ones(3), (1, 2), (0, 1))


def multiply_in_place(x: torch.Tensor) -> torch.Tensor:
    y = x + 1
    y.mul_(2)
    return y


FUNCTIONS: list[tuple[Callable[[torch.Tensor], torch.Tensor], str | None]] = [
    (lambda x: x @ x.mT, None),
    (lambda x: x.to(torch.int32).to(torch.float32), None),
    (lambda x: x.narrow(2, 1, 2), None),
    (narrow_to_the_length, None),
    (take_apart, None),
    (lambda x: 1 - x, None),
    (transpose_and_convolve, None),
    (multiply_in_place, "aten.mul_.Tensor"),
    (lambda x: torch.special.entr(x.abs()), "aten.special_entr.default"),
]


@pytest.mark.parametrize(("function", "needs"), FUNCTIONS)
def test_a_graph_computes_what_the_module_does(
    function: Callable[[torch.Tensor], torch.Tensor],
    needs: str | None,
    decomposed: list[torch.export.ExportedProgram],
) -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(x)

    axes = {"batch": AxisRange(1, 64), "seq": AxisRange(1, 512)}
    names = {name: TensorSpec(name, "float32", ("batch", "seq", 4)) for name in ("x", "y")}
    graph = GraphSpec("model.onnx", 20, "fp32", (names["x"],), (names["y"],), axes)
    with torch.no_grad():
        traced = trace_model(Model().eval(), graph, TracedSizes(3, 7, frozenset()))
    targets = [str(node.target) for program in decomposed for node in program.graph.nodes]
    assert (needs in targets) if needs else not decomposed
    model = ir.serde.serialize_model(traced.model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch, seq_len in ((3, 7), (1, 1), (2, 12)):
        x = torch.randn(batch, seq_len, 4)
        (actual,) = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(actual, function(x).numpy(), rtol=1e-5, atol=1e-6)


def test_every_translation_is_tried() -> None:
    with decompose_only_if_needed():
        seen = set()
        for function, _ in FUNCTIONS:

            class Model(nn.Module):
                def forward(self, x: torch.Tensor, function: Any = function) -> torch.Tensor:
                    return function(x)

            program = torch.export.export(Model(), (torch.ones(3, 7, 4),))
            seen |= {node.target for node in program.graph.nodes}
    assert set(COMPOSITES) <= seen
