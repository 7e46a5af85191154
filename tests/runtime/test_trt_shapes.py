"""Sizes and work of TensorRT networks, beside those of a run in which every value is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from flash_export.config import TENSORRT_RTX, ExportOptions
from flash_export.errors import BackendUnavailableError
from flash_export.exporters.export import export_onnx
from flash_export.interface import Positions
from flash_export.models.mossformer2 import Mossformer2Config, WaveformFrames
from flash_export.models.registry import get_family
from flash_export.runtime import trt_layers
from flash_export.runtime.trt_api import parse_network
from flash_export.runtime.trt_network import NetworkRunner
from flash_export.runtime.trt_shapes import NetworkShapes

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle
    from tests.conftest import PrecisionExporter, SchemeExporter

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")


def draw_inputs(bundle: Bundle, graph: str, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Return inputs that every graph takes: tokens, masks and lengths of 1."""
    generator = np.random.default_rng(0)
    inputs = {}
    for spec in bundle.get_graph(graph).inputs:
        shape = tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape)
        dtype = np.dtype("float32" if spec.dtype == "bfloat16" else spec.dtype)
        inputs[spec.name] = (
            generator.standard_normal(shape).astype(dtype) if dtype.kind == "f" else np.ones(shape, dtype)
        )
        if isinstance(spec.content, Positions):
            inputs[spec.name] *= spec.content.step
    return inputs


def check(bundle: Bundle, graph: str, **sizes: int) -> None:
    """Compare with a run at these sizes: the shape of every value, and the work that PyTorch counts."""
    path = bundle.get_graph_path(graph)
    parsed = parse_network(TENSORRT_RTX, path)
    inputs = draw_inputs(bundle, graph, sizes)
    work = NetworkShapes(parsed).measure({name: value.shape for name, value in inputs.items()})
    assert len(work) == parsed.network.num_layers
    opened = NetworkRunner(bundle.get_graph(graph), path, threads=1, inner_values=tuple(work))
    with opened as runner, FlopCounterMode(display=False) as counter:
        values = runner.run(inputs)
    assert {name: work[name].shape for name in work} == {name: values[name].shape for name in work}
    assert sum(one.flops for one in work.values()) == counter.get_total_flops() > 0


@pytest.mark.parametrize(
    ("graph", "sizes"),
    [
        ("forward", {"batch": 1, "seq": 1}),
        ("forward", {"batch": 3, "seq": 21}),
        ("prefill", {"batch": 2, "seq": 16}),
        ("extend", {"batch": 2, "seq": 5}),
        ("decode", {"batch": 2}),
    ],
)
def test_every_value_is_as_large_as_in_a_run(causal_bundle: Bundle, graph: str, sizes: dict[str, int]) -> None:
    check(causal_bundle, graph, **sizes)


def test_half_precision_and_schemes(export_half: PrecisionExporter, export_scheme: SchemeExporter) -> None:
    check(export_half("bf16"), "forward", batch=2, seq=9)
    for scheme in ("int8", "int4"):
        check(export_scheme(scheme), "forward", batch=2, seq=9)


def test_convolutions_that_hold_their_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    frames = WaveformFrames(kernel_size=8, sample_rate=8000)
    sizes: dict[str, Any] = {"dim": 16, "depth": 1, "hidden_dim": 24, "qk_dim": 8, "chunk_size": 8, "fsmn_dim": 12}
    config = Mossformer2Config(in_channels=8, out_channels=8, fsmn="dilated", frames=frames, **sizes)
    get_family(config.model_type).model_class(config).save_pretrained(tmp_path / "checkpoint")
    options = ExportOptions(max_seq_len=500)
    check(export_onnx(tmp_path / "checkpoint", tmp_path / "bundle", options=options), "forward", batch=2, seq=100)


def test_the_largest_shape_takes_no_memory(causal_byte_bundle: Bundle) -> None:
    """At a million rows, no value that grows could be held here."""
    shapes = NetworkShapes(parse_network(TENSORRT_RTX, causal_byte_bundle.get_graph_path()))
    rows = 1 << 20
    one, many = (shapes.measure({"input_ids": (batch, 96)}) for batch in (1, rows))
    largest = max(many.values(), key=lambda work: np.prod(work.shape, dtype=np.int64))
    assert np.prod(largest.shape, dtype=np.int64) * 4 > 1 << 36
    assert sum(work.flops for work in many.values()) == rows * sum(work.flops for work in one.values())


def test_layer_that_nothing_computes_is_named(causal_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(trt_layers.LAYERS, "CUMULATIVE")
    with pytest.raises(BackendUnavailableError, match=r"^layer 'layers.0.linear/CumSum_0' is a CUMULATIVE, which"):
        NetworkShapes(parse_network(TENSORRT_RTX, causal_bundle.get_graph_path()))


def test_size_that_an_input_decides_is_refused(tmp_path: Path) -> None:
    """Make x (4), shape (2) -> Reshape: how large the output is, only the values of the input say."""
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    shape = helper.make_tensor_value_info("shape", TensorProto.INT64, [2])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b"])
    scale = numpy_helper.from_array(np.ones(4, np.float32), "scale")
    nodes = [helper.make_node("Mul", ["x", "scale"], ["h"]), helper.make_node("Reshape", ["h", "shape"], ["y"])]
    graph = helper.make_graph(nodes, "shaped", [source, shape], [result], [scale])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    with pytest.raises(BackendUnavailableError, match="sizes depend on the values of the input 'shape'"):
        NetworkShapes(parse_network(TENSORRT_RTX, tmp_path / "m.onnx"))
