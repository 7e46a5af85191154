"""Faults planted in a graph that carries a state are refused by validation, and named where they are."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from flash_export.bundle.bundle import Bundle
from flash_export.config import DECODE, EXTEND, FORWARD, PREFILL
from flash_export.errors import BundleError, ConfigError
from flash_export.validators.bisect.bisect import BisectOptions, bisect_bundle
from flash_export.validators.bisect.summary import describe_finding
from flash_export.validators.validate import validate_bundle
from flash_export.validators.validation_options import ValidationOptions
from tests.validators.bisect.conftest import SIZES
from tests.validators.conftest import sign_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Edit = Callable[[onnx.ModelProto], None]

STREAM = "stream:ort-cpu"
STREAMED = ValidationOptions(backends=("ort-cpu", STREAM), latency_budget_s=0)
STATEFUL = (PREFILL, EXTEND, DECODE)


def find_maker(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if name in node.output)


def find_node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def pass_on(model: onnx.ModelProto, name: str, op_type: str, *others: str, **attributes: Any) -> None:
    """Let a value pass through another node, which has its name from now on."""
    maker = find_maker(model, name)
    place = list(model.graph.node).index(maker) + 1
    maker.output[list(maker.output).index(name)] = f"{name}/right"
    model.graph.node.insert(place, helper.make_node(op_type, [f"{name}/right", *others], [name], **attributes))


def write_wrong_slot(model: onnx.ModelProto) -> None:
    slots = np.roll(np.arange(SIZES["chunk_size"]), 1)
    model.graph.initializer.append(numpy_helper.from_array(slots, "rolled"))
    pass_on(model, "new_state.1.quad_k", "Gather", "rolled", axis=1)


def update_sum_twice(model: onnx.ModelProto) -> None:
    pass_on(model, "new_state.1.kv", "Add", find_maker(model, "new_state.1.kv").input[1])


def see_cached_tokens_as_near(model: onnx.ModelProto) -> None:
    find_node(model, "graph/Greater_0").op_type = "GreaterOrEqual"


def sum_own_chunk_too(model: onnx.ModelProto) -> None:
    (attribute,) = (one for one in find_node(model, "layers.1/CumSum_0").attribute if one.name == "exclusive")
    attribute.i = 0


def take_in_what_is_not_kept(model: onnx.ModelProto) -> None:
    """Of the values, write what stands behind a row's length too."""
    written = find_maker(model, "new_state.1.v")
    if written.op_type == "ScatterND":
        written = find_maker(model, written.input[2])
        del written.input[0]  # the condition of a Where
    written.op_type = "Identity"
    del written.input[1:]


def keep_old_half_token(model: onnx.ModelProto) -> None:
    split = find_maker(model, "new_state.1.shift")
    split.output[list(split.output).index("new_state.1.shift")] = "unused"
    model.graph.node.append(helper.make_node("Identity", ["state.1.shift"], ["new_state.1.shift"]))


FAULTS: dict[str, tuple[str, Edit, str]] = {
    "extend, wrong slot": (EXTEND, write_wrong_slot, "layers.1.state_quad_k"),
    "extend, wrong chunk mask": (EXTEND, see_cached_tokens_as_near, "layers.0.mixed"),
    "extend, sum twice": (EXTEND, update_sum_twice, "layers.1.state_kv"),
    "extend, garbage": (EXTEND, take_in_what_is_not_kept, "layers.1.state_v"),
    "prefill, wrong slot": (PREFILL, write_wrong_slot, "layers.1.state_quad_k"),
    "prefill, wrong chunk mask": (PREFILL, sum_own_chunk_too, "layers.1.linear"),
    "prefill, sum twice": (PREFILL, update_sum_twice, "layers.1.state_kv"),
    "prefill, garbage": (PREFILL, take_in_what_is_not_kept, "layers.1.state_kv"),
    "decode, wrong slot": (DECODE, write_wrong_slot, "layers.1.state_quad_k"),
    "decode, wrong chunk mask": (DECODE, see_cached_tokens_as_near, "layers.0.mixed"),
    "decode, sum twice": (DECODE, update_sum_twice, "layers.1.state_kv"),
    "decode, old half token": (DECODE, keep_old_half_token, "layers.1.state_shift"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_refused_and_named(pristine_bundle: Bundle, tmp_path: Path, fault: str) -> None:
    graph, edit, quantity = FAULTS[fault]
    bundle = Bundle.open(shutil.copytree(pristine_bundle.path, tmp_path / "bundle"))
    model = onnx.load(bundle.get_graph_path(graph), load_external_data=False)
    edit(model)
    onnx.save(model, bundle.get_graph_path(graph))
    bundle = sign_files(bundle)

    validation = validate_bundle(bundle, STREAMED)
    statuses = {name: {row.status for row in validation.rows if row.backend == name} for name in ("ort-cpu", STREAM)}
    assert statuses["ort-cpu"] == {"passed"}
    assert "failed" in statuses[STREAM]
    assert not validation

    report = bisect_bundle(bundle, BisectOptions(graph=graph, threads=1))
    assert report.shown_run.fault is not None
    assert report.shown_run.fault.name == quantity
    assert graph == report.graph
    assert bisect_bundle(bundle, BisectOptions(graph=FORWARD, threads=1))


@pytest.mark.parametrize("graph", STATEFUL)
def test_good_graph_is_clean_in_every_run(pristine_bundle: Bundle, graph: str) -> None:
    report = bisect_bundle(pristine_bundle, BisectOptions(graph=graph, threads=1))
    assert report, describe_finding(report)
    assert {row.status for run in report.runs for row in run.rows} == {"clean"}
    assert len(report.runs) == 3
    names = {row.name for row in report.runs[0].rows}
    carried = ("kv", "quad_k", "lin_k", "v", "shift")
    assert names >= {f"layers.2.state_{name}" for name in carried} | {"layers.0.mixed", "layers.1.out", "logits"}
    assert bisect_bundle(pristine_bundle, BisectOptions(graph=graph, threads=1), against=pristine_bundle)


def test_graphs_that_cannot_be_read_say_why(pristine_bundles: dict[str, Bundle]) -> None:
    with pytest.raises(ConfigError, match=r"seq_len=3 was given, decode.onnx takes one token; leave seq_len out"):
        bisect_bundle(pristine_bundles["causal"], BisectOptions(graph=DECODE, seq_len=3))
    with pytest.raises(ConfigError, match=r"unknown graph 'extent'; .*did you mean extend"):
        BisectOptions(graph="extent")
    with pytest.raises(BundleError, match="has no graph 'extend'; it has forward"):
        bisect_bundle(pristine_bundles["masked"], BisectOptions(graph=EXTEND))
