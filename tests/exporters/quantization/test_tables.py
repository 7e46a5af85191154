"""Short tables are the same tables, and half of an embedding is what fp16 makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from flash_export.exporters.quantization.tables import halve_embedding, read_distances, shorten_tables

if TYPE_CHECKING:
    from collections.abc import Callable

ort = pytest.importorskip("onnxruntime")

TABLE = "layers.{}.quadratic.bias"
HIDDEN = np.float32(-np.inf)


def make_table(chunk_size: int, seed: int, *, is_causal: bool = False) -> np.ndarray:
    """Spread a number for each distance over a table; in a causal one, later keys are hidden."""
    distances = np.random.default_rng(seed).standard_normal(2 * chunk_size - 1).astype(np.float32)
    if is_causal:
        distances[chunk_size:] = HIDDEN
    rows = [distances[chunk_size - 1 - query :][:chunk_size] for query in range(chunk_size)]
    return np.stack(rows)


def make_model(*tables: np.ndarray) -> ir.Model:
    """Make a graph that adds every table to ``x``, one after another."""
    names = [TABLE.format(index) for index in range(len(tables))]
    values = ["x", *(f"v{index}" for index in range(len(tables) - 1)), "y"]
    nodes = [
        helper.make_node("Add", [values[index], name], [values[index + 1]], name=f"add_{index}")
        for index, name in enumerate(names)
    ]
    shape = ["batch", *tables[0].shape]
    graph = helper.make_graph(
        nodes,
        "tables",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(table, name) for name, table in zip(names, tables, strict=True)],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def rewrite(model: ir.Model, change: Callable[[ir.Graph], None]) -> onnx.ModelProto:
    change(model.graph)
    proto = ir.to_proto(model)
    assert isinstance(proto, onnx.ModelProto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    (found,) = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, inputs)
    return np.asarray(found)


def list_used(model: onnx.ModelProto) -> set[str]:
    return {name for node in model.graph.node for name in node.input}


@given(
    hnp.arrays(
        np.float32,
        st.integers(1, 12).map(lambda chunk_size: 2 * chunk_size - 1),
        elements=st.floats(max_value=1e9, allow_nan=False, width=32, allow_subnormal=False),
    )
)
def test_the_distances_of_a_table_are_read_back(distances: np.ndarray) -> None:
    chunk_size = (len(distances) + 1) // 2
    table = np.stack([distances[chunk_size - 1 - query :][:chunk_size] for query in range(chunk_size)])
    np.testing.assert_array_equal(read_distances(table), distances)


@pytest.mark.parametrize("place", [(0, 2), (3, 1), (2, 2), (1, 2)])
def test_a_table_with_one_number_of_its_own_has_no_distances(place: tuple[int, int]) -> None:
    table = make_table(4, 0)
    table[place] = np.nextafter(table[place], np.float32(np.inf))
    assert read_distances(table) is None


@pytest.mark.parametrize("shape", [(4, 5), (5,), (1, 4, 4)])
def test_what_is_not_square_has_no_distances(shape: tuple[int, ...]) -> None:
    assert read_distances(np.zeros(shape, np.float32)) is None


def test_short_tables_give_the_same_bits() -> None:
    tables = (make_table(8, 0), make_table(8, 1, is_causal=True))
    x = np.random.default_rng(2).standard_normal((3, 8, 8)).astype(np.float32)
    expected = run(rewrite(make_model(*tables), lambda graph: None), {"x": x})
    short = rewrite(make_model(*tables), shorten_tables)
    np.testing.assert_array_equal(run(short, {"x": x}), expected)
    used = [tensor for tensor in short.graph.initializer if tensor.name in list_used(short)]
    assert max(np.prod(tensor.dims) for tensor in used) == 15
    assert [node.op_type for node in short.graph.node].count("Sub") == 1, "blocks share the index"


def test_a_table_that_is_no_function_of_distance_stays() -> None:
    crooked = make_table(8, 0)
    crooked[0, 6] += 1
    x = np.ones((1, 8, 8), np.float32)
    model = rewrite(make_model(make_table(8, 1), crooked), shorten_tables)
    assert TABLE.format(1) in list_used(model)
    assert TABLE.format(0) not in list_used(model)
    np.testing.assert_array_equal(run(model, {"x": x})[0], (1 + make_table(8, 1)) + crooked)


def make_embedding(table: np.ndarray) -> ir.Model:
    graph = helper.make_graph(
        [helper.make_node("Gather", ["embedding.table", "ids"], ["tokens"], name="embedding/Gather_0")],
        "embedding",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "seq"])],
        [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["batch", "seq", table.shape[1]])],
        [numpy_helper.from_array(table, "embedding.table")],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def test_the_embedding_is_rounded_to_fp16_and_no_further() -> None:
    table = np.random.default_rng(0).standard_normal((11, 6)).astype(np.float32)
    model = rewrite(make_embedding(table), halve_embedding)
    ids = np.array([[0, 10, 3]])
    np.testing.assert_array_equal(run(model, {"ids": ids})[0], table.astype(np.float16).astype(np.float32)[ids[0]])
    (half,) = (tensor for tensor in model.graph.initializer if tensor.name in list_used(model))
    assert half.data_type == TensorProto.FLOAT16


def test_an_embedding_that_leaves_the_range_of_fp16_stays() -> None:
    table = np.ones((4, 2), np.float32)
    table[1, 1] = 70000
    model = rewrite(make_embedding(table), halve_embedding)
    assert [node.name for node in model.graph.node] == ["embedding/Gather_0"]
    assert run(model, {"ids": np.array([[1]])}).tolist() == [[[1, 70000]]]
