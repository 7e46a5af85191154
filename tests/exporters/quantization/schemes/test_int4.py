"""int4: rounding in blocks, what ONNX makes of them, and products that are no whole number of blocks."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from flash_export.exporters.quantization.rounding import ProductSample
from flash_export.exporters.quantization.schemes.int4 import round_to_int4
from tests.exporters.quantization.builders import BLOCK, draw_weights, evaluate, list_roundings, make_outlier


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


def test_onnx_makes_the_same_of_blocks() -> None:
    quantized = round_to_int4(make_outlier(), BLOCK)
    found = evaluate(
        [("DequantizeLinear", ["w", "scale"], "y", {"axis": 0, "block_size": BLOCK})],
        w=(quantized.values, TensorProto.INT4),
        scale=(quantized.scale, TensorProto.FLOAT),
    )
    np.testing.assert_array_equal(found, quantized.dequantize())


def test_a_block_that_does_not_divide_leaves_no_way() -> None:
    x, weight = (np.random.default_rng(0).standard_normal(shape).astype(np.float32) for shape in ((300, 48), (48, 32)))
    sample = ProductSample(weight, x, np.abs(x).max(axis=0))
    assert list_roundings(sample, "int4", block_size=32) == ()
    (rounding,) = list_roundings(sample, "int4", block_size=16)
    assert (rounding.recipe.block_size, rounding.recipe.activation_max) == (16, None)
