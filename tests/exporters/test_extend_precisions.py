"""The graphs that carry a state hold in every precision what they promise: pieces agree, and a wrong start shows."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest

from flash_export.bundle.bundle import Bundle
from flash_export.config import DECODE, EXTEND, PREFILL, QuantizeOptions
from flash_export.errors import InputError
from flash_export.generation.state import State
from flash_export.interface import Positions
from flash_export.quantization.quantize import quantize_bundle
from flash_export.runtime.ort import OrtRunner
from flash_export.validators.bisect.bisect import BisectOptions, bisect_bundle
from flash_export.validators.bisect.summary import describe_finding
from flash_export.validators.validate import validate_bundle
from flash_export.validators.validation_options import ValidationOptions

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FolderSharer, PrecisionExporter

CHUNK_SIZE = 8
STREAMED = ValidationOptions(backends=("stream:ort-cpu",), latency_budget_s=0)


@pytest.fixture(params=["fp32", "bf16", "fp16", "int8", "int8-token", "int4"])
def precise_bundle(
    request: pytest.FixtureRequest,
    causal_byte_bundle: Bundle,
    export_half: PrecisionExporter,
    int8_bundle: Bundle,
    share_folder: FolderSharer,
) -> Bundle:
    if request.param in ("fp16", "bf16"):
        return export_half(request.param)

    def quantize(folder: Path) -> None:
        options = QuantizeOptions(request.param, budget=0.9, threads=1)
        quantize_bundle(causal_byte_bundle, folder / request.param, options=options)

    if request.param in ("int8-token", "int4"):
        return Bundle.open(share_folder(f"blocks-in-{request.param}", quantize) / request.param)
    return int8_bundle if request.param == "int8" else causal_byte_bundle


def test_pieces_agree_and_inner_values_too(precise_bundle: Bundle) -> None:
    report = validate_bundle(precise_bundle, STREAMED)
    streamed = [row for row in report.rows if row.backend == "stream:ort-cpu"]
    assert len(streamed) > 5
    assert {row.status for row in streamed} == {"passed"}
    for graph in (PREFILL, EXTEND, DECODE):
        found = bisect_bundle(precise_bundle, BisectOptions(graph=graph, threads=1))
        assert found, describe_finding(found)


def test_prefill_inside_a_chunk_is_refused_and_gives_nan(precise_bundle: Bundle) -> None:
    graph, path = precise_bundle.get_graph(PREFILL), precise_bundle.get_graph_path(PREFILL)
    state = State.zeros(graph, 2).to_inputs()
    state["state.position"][:, 0] = CHUNK_SIZE, CHUNK_SIZE + 3
    feeds = {"input_ids": np.full((2, 5), 7), "lengths": np.array([5, 5]), **state}
    with (
        OrtRunner(graph, path, threads=1) as runner,
        pytest.raises(InputError, match=r"state.position has 11, .* of 8"),
    ):
        runner.run(feeds)
    anywhere = tuple(
        dataclasses.replace(spec, content=Positions()) if spec.name == "state.position" else spec
        for spec in graph.inputs
    )
    with OrtRunner(dataclasses.replace(graph, inputs=anywhere), path, threads=1) as runner:
        logits = runner.run(feeds)["logits"]
    assert np.isfinite(logits[0]).all()
    assert np.isnan(logits[1]).all()
