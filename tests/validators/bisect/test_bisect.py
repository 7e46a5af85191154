"""Faults planted in the middle block of a graph are found there, and named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from flash_export.errors import BundleError, ConfigError, InputError
from flash_export.limits import QUANTIZATION_BUDGETS
from flash_export.report.html import render_html
from flash_export.validators.bisect.bisect import BisectOptions, bisect_bundle
from flash_export.validators.bisect.page import describe_bisection
from flash_export.validators.bisect.summary import describe_finding
from tests.validators.test_quantized import edit as edit_copy
from tests.validators.test_quantized import edit_constant

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle

    Edit = Callable[[onnx.ModelProto], None]
    GraphEditor = Callable[[Edit], Bundle]

BLOCK = "layers.1"
HIDDEN_DIM, ROTARY_DIM = 24, 12
QUICK = BisectOptions(threads=1)


def change_weight(name: str, change: Callable[[np.ndarray], Any]) -> Edit:
    """Replace an initializer by what ``change`` returns, or by what it makes of it in place."""

    def edit(model: onnx.ModelProto) -> None:
        (tensor,) = (one for one in model.graph.initializer if one.name == name)
        values = numpy_helper.to_array(tensor).copy()
        changed = change(values)
        changed = values if changed is None else changed
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed, dtype=values.dtype), name))

    return edit


def perturb(*index: int) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        values[index] += 0.05

    return change


def scale_row(row: int, factor: float) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        values[row] *= factor

    return change


def show_next_token(bias: np.ndarray) -> None:
    """Move the border of what is hidden by one: every query sees the key after it."""
    for query in range(len(bias) - 1):
        bias[query, query + 1] = 1


def swap_rotated_pairs(gamma: np.ndarray) -> None:
    """Swap the factors of the channels that turn together, of the quadratic queries."""
    gamma[0, ..., :ROTARY_DIM] = np.roll(gamma[0, ..., :ROTARY_DIM], ROTARY_DIM // 2, axis=-1)


def find_node(model: onnx.ModelProto, op_type: str, scope: str = BLOCK) -> onnx.NodeProto:
    nodes = [node for node in model.graph.node if node.op_type == op_type and node.name.startswith(scope)]
    assert len(nodes) == 1, [node.name for node in nodes]
    return nodes[0]


def remove_token_shift(model: onnx.ModelProto) -> None:
    """Let what reads the moved sequence read it as it was."""
    (moved,) = find_node(model, "Gather").output
    (reader,) = (node for node in model.graph.node if moved in node.input)
    reader.input[0] = find_node(model, "Concat", f"{BLOCK}/").input[1]


def sum_own_chunk_too(model: onnx.ModelProto) -> None:
    (attribute,) = (one for one in find_node(model, "CumSum").attribute if one.name == "exclusive")
    attribute.i = 0


def replace_divisor(model: onnx.ModelProto) -> None:
    """Halve the reciprocal of the length, where the middle block takes it."""
    scope = f"{BLOCK}.linear"
    (node,) = (one for one in model.graph.node if one.op_type == "Mul" and one.name.startswith(scope))
    factor = next(name for name in node.input if not name.startswith(scope))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, dtype=np.float32), "half"))
    model.graph.node.insert(list(model.graph.node).index(node), helper.make_node("Mul", [factor, "half"], ["halved"]))
    node.input[list(node.input).index(factor)] = "halved"


def ignore_padding(model: onnx.ModelProto) -> None:
    """Let the middle block see the values of padded tokens."""
    products = [node for node in model.graph.node if node.op_type == "Mul" and node.name.startswith(f"{BLOCK}/")]
    (zeroing,) = (node for node in products if any(name.startswith("graph/") for name in node.input))
    model.graph.initializer.append(numpy_helper.from_array(np.array(1, dtype=np.float32), "unit"))
    zeroing.input[:] = ["unit" if name.startswith("graph/") else name for name in zeroing.input]


def overflow_in_fp16(model: onnx.ModelProto) -> None:
    """Let the output of the middle block pass through fp16 in a scale that is too large for it."""
    name = next(name for name in find_node(model, "Div", "layers.2.norm").input if name.startswith(f"{BLOCK}/"))
    (node,) = (node for node in model.graph.node if name in node.output)
    node.output[0] = "right"
    scales = {"large": 1e6, "small": 1e-6}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, dtype=np.float32), name) for name, value in scales.items()
    )
    place = list(model.graph.node).index(node) + 1
    for made in (
        helper.make_node("Mul", ["fp32", "small"], [name]),
        helper.make_node("Cast", ["fp16"], ["fp32"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Cast", ["scaled"], ["fp16"], to=onnx.TensorProto.FLOAT16),
        helper.make_node("Mul", ["right", "large"], ["scaled"]),
    ):
        model.graph.node.insert(place, made)


CAUSAL_FAULTS: dict[str, tuple[Edit, str, str]] = {
    "value weight": (change_weight(f"{BLOCK}.projection.value_weight", perturb(3, 5)), "value", "channel 5 alone"),
    "gate weight": (change_weight(f"{BLOCK}.projection.weight", perturb(3, 7)), "gate", "channel 7 alone"),
    "to_qk weight": (change_weight(f"{BLOCK}.projection.weight", perturb(3, HIDDEN_DIM + 1)), "quad_q", ""),
    "to_out weight": (change_weight(f"{BLOCK}.out_weight", perturb(3, 5)), "out", "channel 13 alone"),
    "bias moved": (change_weight(f"{BLOCK}.quadratic.bias", lambda bias: np.roll(bias, 1, axis=0)), "weights", ""),
    "future seen": (change_weight(f"{BLOCK}.quadratic.bias", show_next_token), "weights", "query 0 and key 1"),
    "score divisor": (change_weight(f"{BLOCK}.heads.gamma", scale_row(0, 8 / 16)), "quad_q", ""),
    "sum's divisor": (change_weight(f"{BLOCK}.heads.gamma", scale_row(3, 8 / 16)), "lin_k", ""),
    "linear queries": (change_weight(f"{BLOCK}.heads.beta", scale_row(1, 3.0)), "lin_q", ""),
    "pairs swapped": (change_weight(f"{BLOCK}.heads.gamma", swap_rotated_pairs), "quad_q", ""),
    "no token shift": (remove_token_shift, "normed", ""),
    "own chunk summed": (sum_own_chunk_too, "kv", ""),
}


@pytest.mark.parametrize("fault", CAUSAL_FAULTS)
def test_fault_is_found_where_it_is(edit_graph: GraphEditor, fault: str) -> None:
    edit, quantity, note = CAUSAL_FAULTS[fault]
    report = bisect_bundle(edit_graph(edit), QUICK)
    found = report.shown_run.fault

    assert not report
    assert found is not None
    assert found.name == f"{BLOCK}.{quantity}"
    assert note in found.note
    assert describe_finding(report).startswith("Block 1, ")


@pytest.mark.parametrize("pristine_bundle", ["masked"], indirect=True)
def test_replaced_divisor_of_the_global_sum_is_a_factor(edit_graph: GraphEditor) -> None:
    found = bisect_bundle(edit_graph(replace_divisor), QUICK).shown_run.fault
    assert found is not None
    assert (found.name, found.note) == (f"{BLOCK}.kv", "0.5 times the reference")


@pytest.mark.parametrize("pristine_bundle", ["masked"], indirect=True)
def test_ignored_padding_is_found_in_the_values(edit_graph: GraphEditor) -> None:
    found = bisect_bundle(edit_graph(ignore_padding), BisectOptions(seq_len=16, threads=1)).shown_run
    assert found.masked
    assert found.fault is not None
    assert found.fault.name == f"{BLOCK}.value"


def double_logits_of_one_token(model: onnx.ModelProto) -> None:
    (last,) = (node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "right_logits"
    constants = {"axis": np.array(1), "one": np.array(1), "unit": np.array(1, dtype=np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    model.graph.node.extend(
        [
            helper.make_node("Shape", ["input_ids"], ["shape"]),
            helper.make_node("Gather", ["shape", "axis"], ["length"]),
            helper.make_node("Equal", ["length", "one"], ["is_one"]),
            helper.make_node("Cast", ["is_one"], ["excess"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Add", ["excess", "unit"], ["factor"]),
            helper.make_node("Mul", ["right_logits", "factor"], ["logits"]),
        ]
    )


def test_fault_at_one_length_alone_is_found_there(edit_graph: GraphEditor) -> None:
    report = bisect_bundle(edit_graph(double_logits_of_one_token), QUICK)
    assert [str(run) for run in report.runs] == ["2 x 21", "2 x 1"]
    assert report.shown_run.fault is not None
    assert (report.shown_run.fault.name, report.shown_run.fault.note) == ("logits", "2 times the reference")


def test_overflow_is_named_infinite(edit_graph: GraphEditor) -> None:
    report = bisect_bundle(edit_graph(overflow_in_fp16), QUICK)
    found = report.shown_run.fault
    assert found is not None
    assert (found.name, found.status, found.error) == (f"{BLOCK}.out", "infinite", None)
    assert "infinite or not a number" in describe_finding(report)
    report.to_json()  # strict


@pytest.mark.parametrize("pristine_bundle", ["causal", "masked"], indirect=True)
def test_good_graph_is_clean_in_every_run(pristine_bundle: Bundle) -> None:
    steps: list[tuple[int, int, str]] = []
    report = bisect_bundle(pristine_bundle, QUICK, progress=lambda *step: steps.append(step))

    assert report
    assert {row.status for run in report.runs for row in run.rows} == {"clean"}
    assert all(len(run.rows) == 3 * 12 + 2 for run in report.runs)
    masked = pristine_bundle.get_graph().has_mask
    assert [str(run) for run in report.runs] == (
        ["2 x 21", "2 x 21 masked", "2 x 1", "2 x 1 masked", "2 x 8", "2 x 8 masked"]
        if masked
        else ["2 x 21", "2 x 1", "2 x 8"]
    )
    assert [step[:2] for step in steps] == [(index, len(report.runs)) for index in range(len(report.runs))]
    assert describe_finding(report).startswith("No fault found: 38 quantities are within their limits at 2 x 21")


def test_given_length_is_the_only_one(pristine_bundle: Bundle) -> None:
    report = bisect_bundle(pristine_bundle, BisectOptions(seq_len=17, batch=3, threads=1))
    assert [str(run) for run in report.runs] == ["3 x 17"]


def test_two_graphs_are_compared(edit_graph: GraphEditor, pristine_bundle: Bundle) -> None:
    damaged = edit_graph(change_weight(f"{BLOCK}.projection.value_weight", perturb(3, 5)))
    report = bisect_bundle(damaged, QUICK, against=pristine_bundle)
    assert report.shown_run.fault is not None
    assert report.shown_run.fault.name == f"{BLOCK}.value"
    assert report.shown_run.fault.noise is None
    assert report.reference == str(pristine_bundle.path)
    assert bisect_bundle(pristine_bundle, QUICK, against=pristine_bundle)


def test_graph_that_refuses_a_length_is_a_finding(edit_graph: GraphEditor) -> None:
    def fix_length(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 8

    report = bisect_bundle(edit_graph(fix_length), QUICK)
    assert not report
    assert report.shown_run.fault is None
    assert describe_finding(report).startswith("The graph does not run at 2 x 21, so that nothing in it can be read: ")
    assert "invalid dimensions" in report.shown_run.failure
    assert bisect_bundle(edit_graph(fix_length), BisectOptions(seq_len=8, threads=1))


def test_other_model_is_no_reference(pristine_bundles: dict[str, Bundle]) -> None:
    with pytest.raises(ConfigError, match="hold different models"):
        bisect_bundle(pristine_bundles["causal"], QUICK, against=pristine_bundles["masked"])


def test_values_that_the_graph_lacks_are_missing(edit_graph: GraphEditor) -> None:
    def rename(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [f"{name}.renamed" if name.startswith(f"{BLOCK}.linear/") else name for name in names]

    report = bisect_bundle(edit_graph(rename), QUICK)
    assert report
    missing = {row.name for row in report.runs[0].rows if row.status == "missing"}
    assert missing == {f"{BLOCK}.kv", f"{BLOCK}.linear"}
    assert "2 quantities are not in the graph" in describe_finding(report)


def test_graph_without_any_value_to_read_is_refused(edit_graph: GraphEditor) -> None:
    def rename(model: onnx.ModelProto) -> None:
        outputs = {value.name for value in model.graph.output}
        kept = outputs | {value.name for value in model.graph.input} | {one.name for one in model.graph.initializer}
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [name if name in kept or not name else f"{name}.renamed" for name in names]

    with pytest.raises(BundleError, match=r"has none of the values .* export it again"):
        bisect_bundle(edit_graph(rename), QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "trt:forward"}, r"an engine shows its outputs alone.*use one of ort-cpu, ort-cuda"),
        ({"backend": "eager"}, r"unknown backend 'eager'; use one of ort-cpu, ort-cuda"),
        ({"threads": 0}, r"threads=0 is not usable"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BisectOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 97}, "seq_len=97 exceeds"),
        ({"batch": 5}, "batch=5 exceeds"),
        ({"seq_len": 0}, "seq_len=0 is below"),
    ],
)
def test_shape_outside_of_the_graph_is_refused(pristine_bundle: Bundle, options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bisect_bundle(pristine_bundle, BisectOptions(**options))  # type: ignore[arg-type]


def test_run_beyond_memory_is_refused(pristine_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flash_export.validators.bisect.runs.read_free_bytes", lambda: 1000)
    with pytest.raises(InputError, match=r"seq_len=21 with batch=2 needs about .*; use a smaller --seq-len"):
        bisect_bundle(pristine_bundle, QUICK)


def test_rounding_to_few_bits_is_no_fault(int8_bundle: Bundle) -> None:
    report = bisect_bundle(int8_bundle, BisectOptions(seq_len=20, batch=1, threads=1))
    assert report, describe_finding(report)
    rows = report.shown_run.rows
    assert all(row.noise is None for row in rows)
    assert {row.limit for row in rows if row.error is not None} == {QUANTIZATION_BUDGETS["int8"].error}
    assert max(row.error or 0 for row in rows) > 1e-3  # it is quantized
    page = render_html(describe_bisection(report))
    assert "Eager model" not in page
    assert "Few bits make large errors" in page


def test_a_wrong_scale_is_a_fault_of_a_quantized_graph(int8_bundle: Bundle, tmp_path: Path) -> None:
    spoiled = edit_copy(int8_bundle, tmp_path, edit_constant("out_weight_scale", lambda scale: 10 * scale))
    report = bisect_bundle(spoiled, BisectOptions(seq_len=20, batch=1, threads=1))
    fault = report.shown_run.fault
    assert fault is not None
    assert fault.name == "layers.0.out"
    assert "it is the first point above its limit" in describe_finding(report)
