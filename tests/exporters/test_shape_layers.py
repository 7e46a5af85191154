"""How much of what TensorRT's parser makes of our graphs is arithmetic of shapes and indices, in int64."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest
import torch

import flash_export
from flash_export.config import DECODE, EXTEND, FORWARD, PREFILL, TENSORRT_RTX, ExportOptions
from flash_export.exporters.engine_facts import count_layer_dtypes
from flash_export.exporters.export import export_onnx
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.runtime.trt_api import parse_network

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")

ASSETS = Path(flash_export.__file__).parent / "assets"
SHAPE_LAYERS = {"byte-causal": 130, "byte-masked": 132}  # of the forward graphs, six blocks each
NODES = {"byte-causal": 41, "byte-masked": 44}  # of a block
STATE_NODES = {PREFILL: 56, EXTEND: 66, DECODE: 50}
SHAPE_LAYERS_PER_BLOCK = {FORWARD: 18, PREFILL: 18, DECODE: 39}
FIXED_BATCH_LAYERS = 16  # of decode, for its indices: the position is an int64, and so is what it is compared with
CONFIG = FlashConfig(vocab_size=19, dim=16, depth=1, hidden_dim=24, qk_dim=40, chunk_size=8, causal=True)


def count_shape_layers(bundle: Bundle, graph: str = FORWARD) -> int:
    """Return the number of int64 layers of the network that TensorRT-RTX's parser makes of a graph."""
    parsed = parse_network(TENSORRT_RTX, bundle.get_graph_path(graph))
    return count_layer_dtypes(parsed.network).get("int64", 0)


def count_nodes(bundle: Bundle, graph: str = FORWARD) -> Counter[str]:
    """Return the number of nodes of each block of a graph, and around them."""
    nodes = onnx.load(bundle.get_graph_path(graph), load_external_data=False).graph.node
    return Counter(".".join(node.name.partition("/")[0].split(".")[:2]) for node in nodes)


def export_depth(depth: int, folder: Path, options: ExportOptions | None = None) -> Bundle:
    """Export a small causal model of that many blocks, all its graphs."""
    torch.manual_seed(0)
    FlashModel(replace(CONFIG, depth=depth)).save_pretrained(folder / f"model-{depth}")
    return export_onnx(folder / f"model-{depth}", folder / f"bundle-{depth}", options=options)


@pytest.mark.parametrize("name", ["byte-causal", pytest.param("byte-masked", marks=pytest.mark.slow)])
def test_bundled_forward_graphs_compute_few_shapes(name: str, tmp_path: Path) -> None:
    bundle = export_onnx(ASSETS / name, tmp_path / "bundle", options=ExportOptions(graphs=(FORWARD,)))
    assert count_shape_layers(bundle) <= SHAPE_LAYERS[name]
    assert {count_nodes(bundle)[f"layers.{index}"] for index in range(6)} == {NODES[name]}


def test_a_block_computes_few_shapes(tmp_path: Path) -> None:
    one, two = (export_depth(depth, tmp_path) for depth in (1, 2))
    for graph, count in SHAPE_LAYERS_PER_BLOCK.items():
        assert count_shape_layers(two, graph) - count_shape_layers(one, graph) == count, graph
    assert {graph: count_nodes(two, graph)["layers.0"] for graph in STATE_NODES} == STATE_NODES


def test_no_block_of_decode_computes_shapes_at_a_fixed_batch(tmp_path: Path) -> None:
    for depth in (1, 2):
        bundle = export_depth(depth, tmp_path, ExportOptions(batch=1, graphs=(FORWARD, DECODE)))
        assert count_shape_layers(bundle, DECODE) == FIXED_BATCH_LAYERS
