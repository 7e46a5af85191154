"""A scale for each token: nothing of one token reaches another, and what is not finite stays so."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from flash_export.exporters.quantization.numbers import INT8
from flash_export.exporters.quantization.recipe import ProductRecipe, QuantizationRecipe
from flash_export.exporters.quantization.rewrite import quantize_graph
from flash_export.exporters.quantization.schemes.registry import SCHEMES_BY_NAME
from tests.exporters.quantization.builders import count_fused, quantize_product, run, write_product

if TYPE_CHECKING:
    from pathlib import Path

ort = pytest.importorskip("onnxruntime")

SCHEME = SCHEMES_BY_NAME["int8-token"]
K, N = 24, 8
WEIGHT = np.random.default_rng(0).standard_normal((K, N)).astype(np.float32)
TERMS = pytest.mark.parametrize("terms", [1, 2])
SEEDS = st.integers(0, 999)
# From next to the smallest normal number to next to the largest, so that a product of 24 still has a place.
SCALES = st.sampled_from([2.0**-120, 1e-20, 1e-3, 1.0, 1e4, 1e20, 2.0**118])


@functools.cache
def open_product(terms: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")  # without VNNI, sums saturate
    model = quantize_product(write_product(WEIGHT), ProductRecipe(SCHEME, terms=terms))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def multiply(x: np.ndarray, terms: int) -> np.ndarray:
    return np.asarray(open_product(terms).run(None, {"x": x})[0])


def draw_tokens(rows: int, seed: int, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.normal(0, 3, (rows, 1)))
    return (np.clip(sizes, 0.01, 100) * rng.uniform(-1, 1, (rows, K)) * scale).astype(np.float32)


@TERMS
@given(rows=st.integers(1, 40), others=st.integers(0, 40), seed=SEEDS, scale=SCALES)
def test_a_token_is_answered_alike_whoever_is_beside_it(
    rows: int, others: int, seed: int, scale: float, terms: int
) -> None:
    tokens, beside = draw_tokens(rows, seed), draw_tokens(others, seed + 1, scale)
    together = multiply(np.concatenate((tokens, beside)), terms)
    np.testing.assert_array_equal(together[:rows], multiply(tokens, terms))


@TERMS
@settings(max_examples=30)
@given(seed=SEEDS, exponent=st.integers(-100, 100))
def test_a_token_may_have_any_scale(seed: int, exponent: int, terms: int) -> None:
    """A power of two rounds nothing, so that the answer is the same but for that."""
    tokens = draw_tokens(5, seed)
    np.testing.assert_array_equal(
        multiply(tokens * np.float32(2.0**exponent), terms) / np.float32(2.0**exponent), multiply(tokens, terms)
    )


@TERMS
@given(rows=st.integers(1, 9), seed=SEEDS, zero=st.integers(0, 8), sign=st.sampled_from([0.0, -0.0]))
def test_a_token_of_zeros_gives_zeros(rows: int, seed: int, zero: int, sign: float, terms: int) -> None:
    tokens = draw_tokens(rows, seed)
    tokens[zero % rows] = sign
    np.testing.assert_array_equal(multiply(tokens, terms)[zero % rows], np.zeros(N, np.float32))


@TERMS
@given(
    rows=st.integers(1, 9),
    seed=SEEDS,
    row=st.integers(0, 8),
    places=st.lists(st.integers(0, K - 1), min_size=1, max_size=K),
    values=st.lists(st.sampled_from([np.nan, np.inf, -np.inf]), min_size=1, max_size=3),
)
def test_a_token_that_is_not_finite_gives_nan_and_the_others_what_they_gave(
    rows: int, seed: int, row: int, places: list[int], values: list[float], terms: int
) -> None:
    tokens, row = draw_tokens(rows, seed), row % rows
    before = multiply(tokens, terms)
    tokens[row, places] = np.resize(values, len(places))
    with np.errstate(invalid="ignore"):
        assert not np.isfinite(tokens[row] @ WEIGHT).any()
    after = multiply(tokens, terms)
    assert np.isnan(after[row]).all()
    np.testing.assert_array_equal(np.delete(after, row, axis=0), np.delete(before, row, axis=0))


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1.1e38])
@TERMS
def test_the_smallest_and_the_largest_numbers_stay_finite(scale: float, terms: int) -> None:
    x = np.full((1, K), scale, np.float32)
    exact = x.astype(np.float64) @ WEIGHT
    found = multiply(x, terms)
    fits = np.abs(exact) < np.finfo(np.float32).max
    assert np.isfinite(found[fits]).all()
    assert np.abs(found - exact)[fits].max() <= max(0.02 * np.abs(exact).max(), K * np.finfo(np.float32).tiny)


@settings(max_examples=30)
@given(rows=st.integers(1, 9), seed=SEEDS)
def test_it_computes_what_the_rounding_of_each_token_says(rows: int, seed: int) -> None:
    x, weight = draw_tokens(rows, seed), INT8.round_weight(WEIGHT).dequantize()
    size = np.abs(x).max(axis=1, keepdims=True)
    unit, step = x / size, np.float32(1 / INT8.max)
    first = INT8.round_activation(unit, step)
    rest = INT8.round_activation(unit - first, step / (2 * INT8.max))
    for terms, rounded in ((1, first), (2, first + rest)):
        expected = (rounded @ weight) * size
        model = quantize_product(write_product(WEIGHT), ProductRecipe(SCHEME, terms=terms))
        (reference,) = ReferenceEvaluator(model).run(None, {"x": x})
        # Where a value lies between two steps, the last bit of a quotient decides.
        tolerance = np.broadcast_to(1e-5 * size if terms == 1 else 1e-4 * size, expected.shape)
        assert (np.abs(np.asarray(reference) - expected) <= tolerance).mean() > 0.8
        assert (np.abs(multiply(x, terms) - expected) <= tolerance).mean() > 0.8


@TERMS
def test_products_of_one_activation_share_its_rounding(terms: int, tmp_path: Path) -> None:
    model = quantize_two(terms)
    assert count_fused(model, tmp_path)["MatMulIntegerToFloat"] == 2
    counts = {kind: sum(node.op_type == kind for node in model.graph.node) for kind in ("ReduceMax", "QuantizeLinear")}
    assert counts == {"ReduceMax": 1, "QuantizeLinear": 1}
    assert sum(node.op_type == "MatMul" for node in model.graph.node) == 2
    x = draw_tokens(7, 0)
    exact = -(x @ WEIGHT)
    assert np.abs(run(model, {"x": x}) - exact).max() < 0.02 * np.abs(exact).max()


def quantize_two(terms: int) -> onnx.ModelProto:
    """Make the sum of two products of one activation, and quantize both."""
    import onnx_ir as ir

    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "a.weight"], ["left"], name="a/MatMul_0"),
            helper.make_node("MatMul", ["x", "b.weight"], ["right"], name="b/MatMul_0"),
            helper.make_node("Add", ["left", "right"], ["y"], name="Add_0"),
        ],
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", N])],
        [numpy_helper.from_array(WEIGHT, "a.weight"), numpy_helper.from_array(-2 * WEIGHT, "b.weight")],
        value_info=[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["m", N]) for name in ("left", "right")],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    quantize_graph(model, QuantizationRecipe(SCHEME, dict.fromkeys("ab", ProductRecipe(SCHEME, terms=terms))))
    proto = ir.to_proto(model)
    assert isinstance(proto, onnx.ModelProto)
    onnx.checker.check_model(proto, full_check=True)
    return proto
