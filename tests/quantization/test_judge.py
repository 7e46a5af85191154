"""The loss is the divergence and the change of the bits, counted here once more in another way."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from flash_export.quantization.text import Window
from onnx import TensorProto, helper, numpy_helper

from flash_export.errors import InputError
from flash_export.interface import TensorSpec
from flash_export.manifest import AxisRange, GraphSpec
from flash_export.quantization.judge import ESTIMATE_WINDOWS, Judge, Loss

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("onnxruntime")

VOCAB_SIZE = 5
GRAPH = GraphSpec(
    "model.onnx",
    20,
    "fp32",
    (TensorSpec("input_ids", "int64", ("batch", "seq")),),
    (TensorSpec("logits", "float32", ("batch", "seq", VOCAB_SIZE)),),
    {"batch": AxisRange(1, 1), "seq": AxisRange(1, 100)},
)
TABLE = np.random.default_rng(0).standard_normal((VOCAB_SIZE, VOCAB_SIZE)).astype(np.float32)


def write_graph(folder: Path, table: np.ndarray, name: str) -> Path:
    """Write a model whose logits are a row of a table: that of the token."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["logits"])],
        "bigram",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "seq"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "seq", VOCAB_SIZE])],
        [numpy_helper.from_array(table, "table")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / name)
    return folder / name


def make_windows(*, count: int = 3, with_targets: bool = True) -> list[Window]:
    ids = np.random.default_rng(1).integers(0, VOCAB_SIZE, (count, 20))
    predictors = np.array([2, 3, 11])
    return [Window(row[None], predictors, row[predictors + 1] if with_targets else None) for row in ids]


def compute_probabilities(table: np.ndarray, windows: list[Window]) -> np.ndarray:
    logits = np.concatenate([table[window.input_ids[0, window.predictors]] for window in windows]).astype(np.float64)
    weights = np.exp(logits)
    return weights / weights.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("with_targets", [True, False])
def test_divergence_and_bits(tmp_path: Path, with_targets: bool) -> None:
    windows = make_windows(with_targets=with_targets)
    other = TABLE + 0.1 * np.random.default_rng(2).standard_normal(TABLE.shape).astype(np.float32)
    judge = Judge(GRAPH, write_graph(tmp_path, TABLE, "a.onnx"), windows, threads=1)
    loss = judge.measure(write_graph(tmp_path, other, "b.onnx"))

    p, q = compute_probabilities(TABLE, windows), compute_probabilities(other, windows)
    assert loss.kl_bits == pytest.approx((p * np.log2(p / q)).sum() / len(p), rel=1e-4)
    if with_targets:
        targets = np.concatenate([window.targets for window in windows if window.targets is not None])
        rows = np.arange(len(targets))
        assert loss.bits == pytest.approx(-np.log2(q[rows, targets]).mean(), rel=1e-5)
        assert loss.reference_bits == pytest.approx(-np.log2(p[rows, targets]).mean(), rel=1e-5)
    else:
        assert (loss.bits, loss.change) == (None, None)
        assert loss.reference_bits == pytest.approx(-(p * np.log2(p)).sum(axis=-1).mean(), rel=1e-5)


def test_the_same_graph_loses_nothing(tmp_path: Path) -> None:
    path = write_graph(tmp_path, TABLE, "a.onnx")
    judge = Judge(GRAPH, path, make_windows(), threads=1)
    assert judge.measure(path).share == 0
    assert judge.estimate(path) == 0


def test_an_estimate_reads_the_first_windows(tmp_path: Path) -> None:
    windows = make_windows(count=ESTIMATE_WINDOWS + 5)
    judge = Judge(GRAPH, write_graph(tmp_path, TABLE, "a.onnx"), windows, threads=1)
    other = write_graph(tmp_path, TABLE * 1.3, "b.onnx")
    p, q = (compute_probabilities(table, windows[:ESTIMATE_WINDOWS]) for table in (TABLE, TABLE * 1.3))
    divergence = (p * np.log2(p / q)).sum() / len(p) / judge.reference_bits
    assert judge.estimate(other) == pytest.approx(max(divergence, 0.3**2), rel=1e-4)


def test_variance_is_that_of_the_logits_over_the_vocabulary(tmp_path: Path) -> None:
    """A number that is added to all logits of a position changes nothing."""
    judge = Judge(GRAPH, write_graph(tmp_path, TABLE, "a.onnx"), make_windows(), threads=1)
    loss = judge.measure(write_graph(tmp_path, TABLE * 1.3 + 5, "b.onnx"))
    assert loss.variance == pytest.approx(0.3**2, rel=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("with_targets", [True, False])
def test_a_loss_that_is_not_finite_is_infinite(tmp_path: Path, value: float, with_targets: bool) -> None:
    judge = Judge(GRAPH, write_graph(tmp_path, TABLE, "a.onnx"), make_windows(with_targets=with_targets), threads=1)
    broken = TABLE.copy()
    broken[2] = value
    path = write_graph(tmp_path, broken, "b.onnx")
    assert judge.measure(path).share == math.inf
    assert judge.estimate(path) == math.inf


@pytest.mark.parametrize("table", [TABLE * np.nan, np.eye(VOCAB_SIZE, dtype=np.float32) * 1e6])
def test_a_model_with_nothing_to_lose_is_refused(tmp_path: Path, table: np.ndarray) -> None:
    """It predicts no numbers, or is sure of everything."""
    path = write_graph(tmp_path, table, "a.onnx")
    with pytest.raises(InputError, match="bits for a token of the calibration text; give text that it was trained for"):
        Judge(GRAPH, path, make_windows(with_targets=False), threads=1)


@pytest.mark.parametrize(
    ("loss", "share", "change"),
    [
        (Loss(0.01, 2.1, 2.0, 0.0), 0.05, 0.05),
        (Loss(0.2, 2.1, 2.0, 0.0), 0.1, 0.05),
        (Loss(0.01, 1.9, 2.0, 0.0), 0.005, -0.05),
        (Loss(0.01, None, 2.0, 0.0), 0.005, None),
        (Loss(0.01, 2.1, 2.0, 0.3), 0.3, 0.05),
    ],
)
def test_the_share_is_the_largest_of_the_three(loss: Loss, share: float, change: float | None) -> None:
    """Fewer bits are no gain: they came by chance."""
    assert loss.share == pytest.approx(share)
    assert loss.change == (None if change is None else pytest.approx(change))
