"""Which lengths are read, and that what is recorded is what the products were given."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from flash_export.bundle.manifest import AxisRange, GraphSpec
from flash_export.data.batch import Batch
from flash_export.exporters.quantization.source import SourceProduct
from flash_export.interface import TensorSpec
from flash_export.models.token_model import describe_token_model
from flash_export.quantization.activations import (
    FIRST_LENGTH,
    MAX_RECORDED_BYTES,
    SAMPLED_TOKENS,
    list_lengths,
    record_activations,
)
from flash_export.runtime.ort import OrtRunner

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.exporters.quantization.source import SourceGraph

pytest.importorskip("onnxruntime")


INTERFACE = describe_token_model(1000, needs_mask=False, is_causal=True)


def make_row(tokens: np.ndarray) -> Batch:
    return Batch.full(INTERFACE, {"input_ids": tokens[None]})


@given(st.integers(1, 10**6), st.integers(1, 10**5), st.integers(1, 10**6))
def test_lengths_are_doublings_as_far_as_text_graph_and_memory_go(tokens: int, longest: int, each: int) -> None:
    lengths = list_lengths(make_row(np.zeros(tokens, np.int64)), longest, each)
    limit = min(tokens, longest, MAX_RECORDED_BYTES // each)
    assert lengths[0] == min(FIRST_LENGTH, limit)
    assert all(after == 2 * before for before, after in itertools.pairwise(lengths))
    assert lengths[-1] <= limit < 2 * max(lengths[-1], FIRST_LENGTH)


def test_lengths_of_a_real_bundle() -> None:
    assert list_lengths(make_row(np.zeros(65536, np.int64)), 65536, 4 * 3000) == [
        256,
        512,
        1024,
        2048,
        4096,
        8192,
        16384,
        32768,
        65536,
    ]
    assert list_lengths(make_row(np.zeros(65536, np.int64)), 1000, 4 * 3000) == [256, 512]
    assert list_lengths(make_row(np.zeros(100, np.int64)), 65536, 4 * 3000) == [100]


class TwoProducts:
    """A graph in which ``2 ids`` goes into two products, and ``ids²`` into a third."""

    graph = GraphSpec(
        "model.onnx",
        20,
        "fp32",
        (TensorSpec("input_ids", "int64", ("batch", "seq")),),
        (TensorSpec("sums", "float32", ("batch", "seq", 1)),),
        {"batch": AxisRange(1, 4), "seq": AxisRange(1, 10**4)},
    )
    products = tuple(
        SourceProduct(name, value, np.ones((1, 1), np.float32))
        for name, value in (("a", "twice"), ("b", "twice"), ("c", "square"))
    )

    def write(self, folder: Path) -> Path:
        nodes = [
            helper.make_node("Cast", ["input_ids"], ["x"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["x", "last"], ["column"]),
            helper.make_node("Add", ["column", "column"], ["twice"]),
            helper.make_node("Mul", ["column", "column"], ["square"]),
            helper.make_node("Sub", ["twice", "square"], ["sums"]),
        ]
        graph = helper.make_graph(
            nodes,
            "two",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "seq"])],
            [helper.make_tensor_value_info("sums", TensorProto.FLOAT, ["batch", "seq", 1])],
            [numpy_helper.from_array(np.array([-1]), "last")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(model, folder / "model.onnx")
        return folder / "model.onnx"


def record(tmp_path: Path, tokens: np.ndarray, seq_lens: list[int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    source = TwoProducts()
    path = source.write(tmp_path)
    found = record_activations(as_source(source), path, make_row(tokens), seq_lens, threads=1)
    return {name: (activations.x, activations.max_abs) for name, activations in found.items()}


def as_source(source: object) -> SourceGraph:
    return source  # type: ignore[return-value]


def test_the_largest_of_all_tokens_and_a_sample_of_them_are_recorded(tmp_path: Path) -> None:
    tokens = np.ones(2000, np.int64)
    tokens[101] = 900  # between the tokens that are sampled
    found = record(tmp_path, tokens, [1000, 1000])
    assert list(found) == ["a", "b", "c"]
    np.testing.assert_array_equal(found["a"][0], found["b"][0])
    assert found["a"][0].shape == (SAMPLED_TOKENS, 1)
    assert found["a"][1].tolist() == [1800]
    assert found["c"][1].tolist() == [810000]
    assert set(found["c"][0].ravel().tolist()) <= {1, 810000}


def test_what_is_larger_in_short_rows_is_held_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = OrtRunner.run

    def average(self: OrtRunner, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: values / inputs["input_ids"].shape[1] for name, values in run(self, inputs).items()}

    monkeypatch.setattr(OrtRunner, "run", average)
    found = record(tmp_path, np.ones(2000, np.int64), [256, 512])
    assert found["a"][1].tolist() == [2]  # of one token; 256 have 2 / 256
    assert set(found["a"][0].ravel().tolist()) == {2 / 256, 2 / 512}


def test_each_length_goes_on_where_the_last_one_ended_and_then_begins_again(tmp_path: Path) -> None:
    tokens = np.arange(100)
    found = record(tmp_path, tokens, [40, 40, 40])
    seen = (found["a"][0].ravel() / 2).astype(int).tolist()
    assert seen == [*range(80), *range(40)]
