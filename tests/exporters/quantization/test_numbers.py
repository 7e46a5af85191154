"""Rounding keeps its error bounds, and the numbers mean what ONNX's own operators make of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from flash_export.exporters.quantization.numbers import (
    FP8_MAX,
    INT8_MAX,
    round_activation,
    round_to_fp8,
    round_to_int4,
    round_to_int8,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from flash_export.exporters.quantization.numbers import QuantizedWeight

BLOCK = 16
SLACK = 1 + 1e-5  # of float32 itself
NUMBERS = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
FLOAT, INT8, INT4, FP8 = TensorProto.FLOAT, TensorProto.INT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN


def draw_weights(*, rows: st.SearchStrategy[int]) -> st.SearchStrategy[np.ndarray]:
    shapes = st.tuples(rows, st.integers(1, 5))
    return shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=NUMBERS))


def make_outlier(k: int = 64, n: int = 8) -> np.ndarray:
    weight = np.random.default_rng(0).standard_normal((k, n)).astype(np.float32)
    weight[3] *= 40
    return weight


def evaluate(nodes: list[tuple[str, list[str], str, dict[str, Any]]], **values: tuple[np.ndarray, int]) -> np.ndarray:
    """Run operators of opset 21 in onnx's reference implementation; the last output is returned."""
    graph = helper.make_graph(
        [helper.make_node(op_type, inputs, [output], **attributes) for op_type, inputs, output, attributes in nodes],
        "numbers",
        [helper.make_tensor_value_info(name, kind, array.shape) for name, (array, kind) in values.items()],
        [helper.make_tensor_value_info(nodes[-1][2], FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    (found,) = ReferenceEvaluator(model).run(None, {name: array for name, (array, _) in values.items()})
    return np.asarray(found)


@given(draw_weights(rows=st.integers(1, 40)))
def test_int8_is_off_by_half_a_step_of_its_output_at_most(weight: np.ndarray) -> None:
    quantized = round_to_int8(weight)
    assert quantized.values.dtype == np.int8
    assert np.abs(quantized.values.astype(int)).max() <= INT8_MAX  # -128 would not be symmetric
    error = np.abs(quantized.dequantize().astype(np.float64) - weight)
    assert (error <= 0.5 * SLACK * quantized.scale).all()
    assert (quantized.scale <= SLACK * np.maximum(np.abs(weight).max(axis=0) / INT8_MAX, 1e-37)).all()


@given(draw_weights(rows=st.integers(1, 40)))
def test_fp8_is_off_by_half_a_unit_in_the_last_of_three_places(weight: np.ndarray) -> None:
    quantized = round_to_fp8(weight)
    error = np.abs(quantized.dequantize().astype(np.float64) - weight)
    assert (error <= SLACK * np.maximum(np.abs(weight) * 2.0**-4, quantized.scale * 2.0**-10)).all()


@given(draw_weights(rows=st.sampled_from([BLOCK, 2 * BLOCK, 3 * BLOCK])))
def test_int4_is_never_worse_than_the_scale_of_the_largest(weight: np.ndarray) -> None:
    k, n = weight.shape
    quantized = round_to_int4(weight, BLOCK)
    assert quantized.scale.shape == (k // BLOCK, n)
    blocks = weight.astype(np.float64).reshape(k // BLOCK, BLOCK, n)
    plain = np.maximum(np.abs(blocks).max(axis=1, keepdims=True) / 7, 1e-37)
    plain_error = np.square(np.rint(blocks / plain) * plain - blocks).sum(axis=1)
    found = quantized.dequantize().astype(np.float64).reshape(blocks.shape)
    error = np.square(found - blocks).sum(axis=1)
    assert (error <= plain_error * (1 + 1e-3) + 1e-9 * np.square(blocks).sum(axis=1)).all()


def test_int4_cuts_an_outlier_for_the_sake_of_the_others() -> None:
    weight = np.full((BLOCK, 1), 0.6, np.float32)
    weight[0] = 8.0
    quantized = round_to_int4(weight, BLOCK)
    plain = np.rint(weight / (8 / 7)) * 8 / 7
    assert np.square(quantized.dequantize() - weight).sum() < 0.9 * np.square(plain - weight).sum()


@pytest.mark.parametrize("rounding", [round_to_int8, round_to_fp8, lambda weight: round_to_int4(weight, BLOCK)])
def test_a_column_of_zeros_stays_one(rounding: Callable[[np.ndarray], QuantizedWeight]) -> None:
    weight = np.random.default_rng(0).standard_normal((BLOCK, 3)).astype(np.float32)
    weight[:, 1] = 0
    quantized = rounding(weight)
    assert (quantized.dequantize()[:, 1] == 0).all()
    assert (quantized.scale > 0).all()
    assert np.isfinite(quantized.scale).all()
    assert quantized.dequantize()[:, 0].any()


@pytest.mark.parametrize(
    ("quantized", "kind"), [(round_to_int8(make_outlier()), INT8), (round_to_fp8(make_outlier()), FP8)]
)
def test_onnx_makes_the_same_of_a_scale_an_output(quantized: QuantizedWeight, kind: int) -> None:
    zero = np.zeros(quantized.scale.shape, quantized.values.dtype)
    found = evaluate(
        [("DequantizeLinear", ["w", "scale", "zero"], "y", {"axis": 1})],
        w=(quantized.values, kind),
        scale=(quantized.scale, FLOAT),
        zero=(zero, kind),
    )
    np.testing.assert_array_equal(found, quantized.dequantize())


def test_onnx_makes_the_same_of_blocks() -> None:
    quantized = round_to_int4(make_outlier(), BLOCK)
    found = evaluate(
        [("DequantizeLinear", ["w", "scale"], "y", {"axis": 0, "block_size": BLOCK})],
        w=(quantized.values, INT4),
        scale=(quantized.scale, FLOAT),
    )
    np.testing.assert_array_equal(found, quantized.dequantize())


@pytest.mark.parametrize("is_float", [False, True], ids=["int8", "fp8"])
def test_onnx_rounds_activations_alike_and_cuts_what_is_too_large(is_float: bool) -> None:
    x = np.random.default_rng(1).standard_normal((7, 33)).astype(np.float32)
    x[0, :3] = 50, -50, 0.5 * x[1, 1]
    step = np.float32(2.5 / (FP8_MAX if is_float else INT8_MAX))
    dtype = round_to_fp8(x).values.dtype if is_float else np.dtype(np.int8)
    found = evaluate(
        [
            ("QuantizeLinear", ["x", "step", "zero"], "q", {}),
            ("DequantizeLinear", ["q", "step", "zero"], "y", {}),
        ],
        x=(x, FLOAT),
        step=(np.array(step), FLOAT),
        zero=(np.zeros((), dtype), FP8 if is_float else INT8),
    )
    ours = round_activation(x, float(step), is_float=is_float)
    np.testing.assert_allclose(ours, found, rtol=1e-6, atol=0)
    assert ours[0, 0] == pytest.approx(2.5, rel=1e-6)
