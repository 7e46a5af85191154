"""The prefill and decode graphs are validated as the forward graph is, and a fault of one of them alone is found."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flash_export.bundle.bundle import Bundle
from flash_export.config import DECODE, EXTEND, PREFILL
from flash_export.generation.pieces import cut_texts
from flash_export.validators.backends import list_backends
from flash_export.validators.validate import validate_bundle
from flash_export.validators.validation_options import ValidationOptions
from tests.validators.conftest import sign_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STREAM = "stream:ort-cpu"
QUICK = ValidationOptions(backends=("ort-cpu", STREAM), latency_budget_s=0)


def edit_graph(pristine: Bundle, folder: Path, name: str, change: Callable[[onnx.ModelProto], None]) -> Bundle:
    bundle = Bundle.open(shutil.copytree(pristine.path, folder / "bundle"))
    model = onnx.load(bundle.get_graph_path(name), load_external_data=False)
    change(model)
    onnx.save(model, bundle.get_graph_path(name))
    return sign_files(bundle)


def test_good_bundle_passes_and_a_stream_is_not_timed(causal_byte_bundle: Bundle) -> None:
    report = validate_bundle(causal_byte_bundle, QUICK)
    rows = [row for row in report.rows if row.backend == STREAM]
    assert report
    assert {row.seq_len for row in rows} >= {1, 2, 7, 8, 9, 64}
    assert {row.graph for row in rows} == {"prefill+extend+decode"}
    assert all(row.status == "passed" and row.latency_ms is None for row in rows)
    assert all(row.max_abs_error is not None and row.max_abs_error < 1e-5 for row in rows)


def read_own_slot_as_earlier(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Greater").op_type = "GreaterOrEqual"


def include_own_chunk(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "CumSum")
    next(attribute for attribute in node.attribute if attribute.name == "exclusive").i = 0


@pytest.mark.parametrize(
    ("graph", "fault"),
    [("decode", read_own_slot_as_earlier), ("prefill", include_own_chunk)],
)
def test_fault_of_one_graph_fails_the_stream_alone(
    causal_byte_bundle: Bundle, tmp_path: Path, graph: str, fault: Callable[[onnx.ModelProto], None]
) -> None:
    report = validate_bundle(edit_graph(causal_byte_bundle, tmp_path, graph, fault), QUICK)
    statuses = {name: {row.status for row in report.rows if row.backend == name} for name in ("ort-cpu", STREAM)}
    assert statuses["ort-cpu"] == {"passed"}
    assert "failed" in statuses[STREAM]
    assert not report


def test_streams_are_offered_where_the_graphs_are(causal_byte_bundle: Bundle, pristine_bundle: Bundle) -> None:
    assert STREAM in [backend.name for backend in list_backends(causal_byte_bundle)]
    assert STREAM not in [backend.name for backend in list_backends(pristine_bundle)]


@given(batch=st.integers(1, 8), seq_len=st.integers(1, 5000), chunk_size=st.integers(1, 300))
def test_pieces_cover_the_texts_and_suit_their_graphs(batch: int, seq_len: int, chunk_size: int) -> None:
    position = np.zeros(batch, np.int64)
    for piece in cut_texts(batch, seq_len, chunk_size):
        assert piece.graph == EXTEND or (position < seq_len).all()
        if piece.graph == PREFILL:
            assert (piece.lengths >= 1).all()
            assert not (position % chunk_size).any()
        if piece.graph == DECODE:
            assert len({*piece.lengths.tolist()} - {0}) == 1
        if piece.graph == EXTEND:
            assert chunk_size > 1
            assert 0 < piece.lengths.max() <= chunk_size
        position += piece.lengths
    assert (position == seq_len).all()


@pytest.mark.parametrize("batch", [1, 3])
def test_pieces_of_a_plan_have_what_production_does(batch: int) -> None:
    chunk_size, seen = 16, set()
    for seq_len in (17, 32, 53, 67, 128, 256, 512):
        position = np.zeros(batch, np.int64)
        for piece in cut_texts(batch, seq_len, chunk_size):
            ends = position + piece.lengths
            crosses = ((ends - 1) // chunk_size > position // chunk_size).any()
            seen.add((piece.graph, bool(crosses), len({*position.tolist()}) > 1, bool((position % chunk_size).any())))
            position = ends
    ragged = batch > 1
    wanted = {(graph, True, ragged, True) for graph in (EXTEND, DECODE)}
    assert wanted <= seen
    assert (PREFILL, False, ragged, False) in seen  # after rows were read to the ends of their chunks
