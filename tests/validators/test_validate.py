from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from flash_export.bundle.bundle import Bundle
from flash_export.errors import BundleError, ConfigError, InputError
from flash_export.validators.validate import validate_bundle
from flash_export.validators.validation_options import ValidationOptions
from tests.validators.conftest import sign_files

if TYPE_CHECKING:
    from collections.abc import Callable

    from flash_export.validators.results import Row

    GraphEditor = Callable[[Callable[[onnx.ModelProto], None]], Bundle]

QUICK = ValidationOptions(seq_lens=(1, 7, 8, 9, 30), backends=("ort-cpu",), threads=1, latency_budget_s=0)


def shift_initializer(name: str, amount: float) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        (tensor,) = (one for one in model.graph.initializer if one.name == name)
        values = numpy_helper.to_array(tensor).copy()
        values.flat[0] += amount
        tensor.CopyFrom(numpy_helper.from_array(values, name))

    return change


def fix_length(model: onnx.ModelProto) -> None:
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[1].dim_value = 30


def ignore_mask(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.input[:] = ["all_ones" if name == "attention_mask" else name for name in node.input]
    for name, value in (("nought", 0), ("one", 1)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=np.int64), name))
    model.graph.node.insert(0, helper.make_node("Add", ["no_mask", "one"], ["all_ones"]))
    model.graph.node.insert(0, helper.make_node("Mul", ["attention_mask", "nought"], ["no_mask"]))


def select(rows: tuple[Row, ...], *, masked: bool) -> list[Row]:
    return [row for row in rows if row.masked == masked]


def test_manifest_of_another_model_is_refused(bundle: Bundle) -> None:
    interface = dataclasses.replace(bundle.manifest.interface, window=16)
    manifest = dataclasses.replace(bundle.manifest, interface=interface)
    (bundle.path / "manifest.json").write_text(manifest.to_json())
    with pytest.raises(BundleError, match=r"manifest.json has the interface of another model than config.json; export"):
        validate_bundle(Bundle.open(bundle.path))


def test_good_bundle_passes_in_every_cell(pristine_bundle: Bundle) -> None:
    steps: list[tuple[int, int, str]] = []
    report = validate_bundle(
        pristine_bundle, ValidationOptions(threads=1, latency_budget_s=0), lambda *step: steps.append(step)
    )

    assert report
    compared = [row for row in report.rows if row.backend == "ort-cpu"]
    assert {row.status for row in compared} == {"passed"}
    invariances = {row.check for row in compared} - {"accuracy"}
    assert invariances == {"repeat", "equal-rows", "row-alone", "padding", "static-shape", "symbolic-shape"}
    compared = [row for row in compared if row.check == "accuracy"]
    assert {row.seq_len for row in compared} == {1, 2, 4, 7, 8, 9, 16, 29, 32, 35, 64, 96}
    assert {(row.batch, row.masked) for row in compared if row.seq_len == 9} == {
        (1, False), (1, True), (3, False), (3, True)
    }  # fmt: skip
    assert all(row.max_abs_error is not None and row.max_abs_error < 1e-5 for row in compared)
    assert steps[0][0] == 0
    assert steps[-1][0] == steps[-1][1]


def test_unavailable_backend_is_one_skipped_row(pristine_bundle: Bundle) -> None:
    report = validate_bundle(pristine_bundle, ValidationOptions(backends=("trt",), latency_budget_s=0))

    assert [(row.backend, row.status, row.batch) for row in report.rows] == [("trt", "skipped", None)]
    assert "no engine" in str(report.rows[0].reason)
    assert not report


@pytest.mark.parametrize("name", ["head.bias", "layers.0.quadratic.bias", "layers.0.projection.weight"])
def test_changed_weight_fails(edit_graph: GraphEditor, name: str) -> None:
    report = validate_bundle(edit_graph(shift_initializer(name, 0.5)), QUICK)

    assert not report
    failed = [row for row in report.rows if row.status == "failed"]
    assert failed
    assert "exceeds the tolerance" in str(failed[0].reason)


def test_graph_of_one_length_fails_at_the_others_only(edit_graph: GraphEditor) -> None:
    report = validate_bundle(edit_graph(fix_length), QUICK)

    assert {row.seq_len for row in report.rows if row.status == "passed"} == {30}
    assert {row.seq_len for row in report.rows if row.status == "failed"} == {1, 7, 8, 9}
    reasons = {row.reason for row in report.rows if row.status == "failed"}
    assert all("invalid dimensions" in str(reason) and "\n" not in str(reason) for reason in reasons)


def test_nan_fails_and_leaves_no_number(edit_graph: GraphEditor) -> None:
    report = validate_bundle(edit_graph(shift_initializer("head.bias", float("nan"))), QUICK)

    assert {row.status for row in report.rows} == {"failed"}
    assert all("NaN or infinity" in str(row.reason) and row.max_abs_error is None for row in report.rows)
    assert "NaN" not in report.to_json().replace("NaN or infinity", "")


def test_graph_that_ignores_its_mask_fails_where_something_is_masked(edit_graph: GraphEditor) -> None:
    report = validate_bundle(edit_graph(ignore_mask), QUICK)

    assert {row.status for row in select(report.rows, masked=False)} == {"passed"}
    assert {row.status for row in select(report.rows, masked=True) if row.seq_len != 1} == {"failed"}


def test_latency_is_measured_where_nothing_is_masked(pristine_bundle: Bundle) -> None:
    options = ValidationOptions(seq_lens=(9,), batches=(2,), backends=("ort-cpu",), threads=1, latency_budget_s=0.01)
    plain, masked = validate_bundle(pristine_bundle, options).rows

    assert plain.latency_ms is not None
    assert plain.eager_latency_ms is not None
    assert 0 < plain.latency_ms.p50 <= plain.latency_ms.p90 <= plain.latency_ms.p99
    assert plain.speedup == plain.eager_latency_ms.p50 / plain.latency_ms.p50
    assert masked.latency_ms is None


def test_cell_beyond_memory_is_skipped(pristine_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flash_export.validators.memory.read_free_bytes", lambda: 1000)
    report = validate_bundle(pristine_bundle, QUICK)

    assert {row.status for row in report.rows} == {"skipped"}
    assert all("not enough memory" in str(row.reason) for row in report.rows)
    assert not report


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ValidationOptions(seq_lens=(8, 0)), r"seq_len=0 is below .* minimum 1; use 1 or more"),
        (ValidationOptions(seq_lens=(97,)), r"seq_len=97 exceeds .* maximum 96; .*--max-seq-len 97"),
        (ValidationOptions(max_seq_len=1000), r"seq_len=1000 exceeds"),
        (ValidationOptions(batches=(5,)), r"batch=5 exceeds .* maximum 4"),
        (ValidationOptions(seq_lens=()), "no value"),
    ],
)
def test_shape_outside_of_the_graph_is_refused_before_any_work(
    pristine_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, options: ValidationOptions, message: str
) -> None:
    monkeypatch.setattr("flash_export.bundle.bundle.Bundle.load_model", lambda _: pytest.fail("work was done"))
    with pytest.raises(InputError, match=message):
        validate_bundle(pristine_bundle, options)


@pytest.mark.parametrize("name", ["ort", "tensorrt", "trt:missing", ""])
def test_unknown_backend_is_refused(pristine_bundle: Bundle, name: str) -> None:
    with pytest.raises(
        ConfigError,
        match=r"unknown backend .*use one of ort-cpu, ort-cuda, ort-tensorrt, ort-tensorrt-rtx, openvino, trt",
    ):
        validate_bundle(pristine_bundle, ValidationOptions(backends=(name,)))


def test_truncated_graph_is_a_bundle_error(edit_graph: GraphEditor) -> None:
    bundle = edit_graph(lambda model: None)
    path = bundle.get_graph_path()
    path.write_bytes(path.read_bytes()[:-200])
    bundle = sign_files(bundle)
    with pytest.raises(BundleError, match=r"cannot be loaded by onnxruntime"):
        validate_bundle(bundle, QUICK)


@pytest.mark.parametrize(
    "values",
    [
        {"threads": 0},
        {"seq_lens": (1,), "max_seq_len": 8},
        *({name: value} for name in ("atol", "rtol") for value in (-1e-3, float("inf"), float("nan"))),
    ],
)
def test_unusable_options_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ValidationOptions(**values)  # type: ignore[arg-type]


def test_limit_follows_precision_and_options() -> None:
    limits = [
        ValidationOptions().get_limit(precision).compute_limit(1.0, 0.0) for precision in ("fp32", "fp16", "bf16")
    ]
    assert limits == sorted(limits)
    assert ValidationOptions().get_limit("fp32").compute_limit(1.0, 1e-3) > 1e-3
    strict = ValidationOptions(atol=0.5, rtol=0.0).get_limit("fp16")
    assert strict.compute_limit(100.0, 1.0) == 0.5
