"""Rounding keeps its error bounds, and the numbers mean what ONNX's own operators make of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from flash_export.exporters.quantization.numbers import INT8
from flash_export.exporters.quantization.schemes.fp8 import FP8
from flash_export.exporters.quantization.schemes.int4 import round_to_int4
from tests.exporters.quantization.builders import BLOCK, draw_weights, evaluate, make_outlier

if TYPE_CHECKING:
    from collections.abc import Callable

    from flash_export.exporters.quantization.numbers import NumberFormat, QuantizedWeight

SLACK = 1 + 1e-5  # of float32 itself
FLOAT = TensorProto.FLOAT
KINDS = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}


@given(draw_weights(rows=st.integers(1, 40)))
def test_int8_is_off_by_half_a_step_of_its_output_at_most(weight: np.ndarray) -> None:
    quantized = INT8.round_weight(weight)
    assert quantized.values.dtype == np.int8
    assert np.abs(quantized.values.astype(int)).max() <= INT8.max  # -128 would not be symmetric
    error = np.abs(quantized.dequantize().astype(np.float64) - weight)
    assert (error <= 0.5 * SLACK * quantized.scale).all()
    assert (quantized.scale <= SLACK * np.maximum(np.abs(weight).max(axis=0) / INT8.max, 1e-37)).all()


@given(draw_weights(rows=st.integers(1, 40)))
def test_fp8_is_off_by_half_a_unit_in_the_last_of_three_places(weight: np.ndarray) -> None:
    quantized = FP8.round_weight(weight)
    error = np.abs(quantized.dequantize().astype(np.float64) - weight)
    assert (error <= SLACK * np.maximum(np.abs(weight) * 2.0**-4, quantized.scale * 2.0**-10)).all()


@pytest.mark.parametrize("rounding", [INT8.round_weight, FP8.round_weight, lambda weight: round_to_int4(weight, BLOCK)])
def test_a_column_of_zeros_stays_one(rounding: Callable[[np.ndarray], QuantizedWeight]) -> None:
    weight = np.random.default_rng(0).standard_normal((BLOCK, 3)).astype(np.float32)
    weight[:, 1] = 0
    quantized = rounding(weight)
    assert (quantized.dequantize()[:, 1] == 0).all()
    assert (quantized.scale > 0).all()
    assert np.isfinite(quantized.scale).all()
    assert quantized.dequantize()[:, 0].any()


@pytest.mark.parametrize(
    ("quantized", "kind"),
    [(INT8.round_weight(make_outlier()), KINDS["int8"]), (FP8.round_weight(make_outlier()), KINDS["fp8"])],
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


@pytest.mark.parametrize(("numbers", "kind"), [(INT8, KINDS["int8"]), (FP8, KINDS["fp8"])], ids=["int8", "fp8"])
def test_onnx_rounds_activations_alike_and_cuts_what_is_too_large(numbers: NumberFormat, kind: int) -> None:
    x = np.random.default_rng(1).standard_normal((7, 33)).astype(np.float32)
    x[0, :3] = 50, -50, 0.5 * x[1, 1]
    step = np.float32(2.5 / numbers.max)
    found = evaluate(
        [
            ("QuantizeLinear", ["x", "step", "zero"], "q", {}),
            ("DequantizeLinear", ["q", "step", "zero"], "y", {}),
        ],
        x=(x, FLOAT),
        step=(np.array(step), FLOAT),
        zero=(np.zeros((), numbers.dtype), kind),
    )
    ours = numbers.round_activation(x, float(step))
    np.testing.assert_allclose(ours, found, rtol=1e-6, atol=0)
    assert ours[0, 0] == pytest.approx(2.5, rel=1e-6)
