"""The loss is the divergence and the change of the bits, counted here once more in another way."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flash_export.bundle.manifest import AxisRange, GraphSpec
from flash_export.data.batch import Batch
from flash_export.data.samples import Sample
from flash_export.errors import InputError
from flash_export.interface import TensorSpec
from flash_export.models.token_model import describe_token_model
from flash_export.quantization.loss import ESTIMATE_SAMPLES, Judge

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("onnxruntime")

VOCAB_SIZE = 5
INTERFACE = describe_token_model(VOCAB_SIZE, needs_mask=False, is_causal=True)
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


PREDICTORS = np.array([2, 3, 11])


def make_samples(*, count: int = 3, with_targets: bool = True) -> list[Sample]:
    ids = np.random.default_rng(1).integers(0, VOCAB_SIZE, (count, 20))
    compared = np.zeros((1, 20), dtype=bool)
    compared[0, PREDICTORS] = True
    return [
        Sample(Batch.full(INTERFACE, {"input_ids": row[None]}), compared, row[PREDICTORS + 1] if with_targets else None)
        for row in ids
    ]


def compute_probabilities(table: np.ndarray, samples: list[Sample]) -> np.ndarray:
    ids = np.concatenate([sample.batch.arrays["input_ids"][0, PREDICTORS] for sample in samples])
    logits = table[ids].astype(np.float64)
    weights = np.exp(logits)
    return weights / weights.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("with_targets", [True, False])
def test_divergence_and_bits(tmp_path: Path, with_targets: bool) -> None:
    samples = make_samples(with_targets=with_targets)
    other = TABLE + 0.1 * np.random.default_rng(2).standard_normal(TABLE.shape).astype(np.float32)
    judge = Judge(INTERFACE, GRAPH, write_graph(tmp_path, TABLE, "a.onnx"), samples, threads=1)
    loss = judge.measure(write_graph(tmp_path, other, "b.onnx"))

    p, q = compute_probabilities(TABLE, samples), compute_probabilities(other, samples)
    assert loss.measures["kl_bits"] == pytest.approx((p * np.log2(p / q)).sum() / len(p), rel=1e-4)
    if with_targets:
        targets = np.concatenate([sample.target for sample in samples if sample.target is not None])
        rows = np.arange(len(targets))
        assert loss.score == pytest.approx(-np.log2(q[rows, targets]).mean(), rel=1e-5)
        assert loss.reference_score == pytest.approx(-np.log2(p[rows, targets]).mean(), rel=1e-5)
    else:
        assert (loss.score, loss.change) == (None, None)
        assert loss.reference_score == pytest.approx(-(p * np.log2(p)).sum(axis=-1).mean(), rel=1e-5)


def test_the_same_graph_loses_nothing(tmp_path: Path) -> None:
    path = write_graph(tmp_path, TABLE, "a.onnx")
    judge = Judge(INTERFACE, GRAPH, path, make_samples(), threads=1)
    assert judge.measure(path).share == 0
    assert judge.estimate(path) == 0


def test_an_estimate_reads_the_first_samples(tmp_path: Path) -> None:
    samples = make_samples(count=ESTIMATE_SAMPLES + 5)
    judge = Judge(INTERFACE, GRAPH, write_graph(tmp_path, TABLE, "a.onnx"), samples, threads=1)
    other = write_graph(tmp_path, TABLE * 1.3, "b.onnx")
    p, q = (compute_probabilities(table, samples[:ESTIMATE_SAMPLES]) for table in (TABLE, TABLE * 1.3))
    divergence = (p * np.log2(p / q)).sum() / len(p) / (judge.measure(other).reference_score or 0)
    assert judge.estimate(other) == pytest.approx(max(divergence, 0.3**2), rel=1e-4)


def test_variance_is_that_of_the_logits_over_the_vocabulary(tmp_path: Path) -> None:
    """A number that is added to all logits of a position changes nothing."""
    judge = Judge(INTERFACE, GRAPH, write_graph(tmp_path, TABLE, "a.onnx"), make_samples(), threads=1)
    loss = judge.measure(write_graph(tmp_path, TABLE * 1.3 + 5, "b.onnx"))
    assert loss.measures["variance"] == pytest.approx(0.3**2, rel=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("with_targets", [True, False])
def test_a_loss_that_is_not_finite_is_infinite(tmp_path: Path, value: float, with_targets: bool) -> None:
    judge = Judge(
        INTERFACE, GRAPH, write_graph(tmp_path, TABLE, "a.onnx"), make_samples(with_targets=with_targets), threads=1
    )
    broken = TABLE.copy()
    broken[2] = value
    path = write_graph(tmp_path, broken, "b.onnx")
    assert judge.measure(path).share == math.inf
    assert judge.estimate(path) == math.inf


@pytest.mark.parametrize("table", [TABLE * np.nan, np.eye(VOCAB_SIZE, dtype=np.float32) * 1e6])
def test_a_model_with_nothing_to_lose_is_refused(tmp_path: Path, table: np.ndarray) -> None:
    """It predicts no numbers, or is sure of everything."""
    path = write_graph(tmp_path, table, "a.onnx")
    with pytest.raises(
        InputError,
        match=r"leave nothing to judge by \(.*\); give data that it was trained for",
    ):
        Judge(INTERFACE, GRAPH, path, make_samples(with_targets=False), threads=1)
