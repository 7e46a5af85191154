"""Ways to round a product: smoothing where channels have outliers, and two terms last."""

from __future__ import annotations

import numpy as np
import pytest

from flash_export.exporters.quantization.numbers import INT8
from flash_export.exporters.quantization.rounding import STRENGTHS, ProductSample
from flash_export.exporters.quantization.schemes.registry import SCHEMES_BY_NAME
from tests.exporters.quantization.builders import list_roundings

K, N = 64, 32
CALIBRATED = [name for name, scheme in SCHEMES_BY_NAME.items() if scheme.reads_activations]


def make_product(*outliers: int, k: int = K) -> ProductSample:
    """Make a product whose input has some channels a hundred times as large as the others."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, k)).astype(np.float32)
    x[:, list(outliers)] *= 100
    weight = rng.standard_normal((k, N)).astype(np.float32)
    weight[list(outliers)] /= 100
    return ProductSample(weight, x, np.abs(x).max(axis=0))


def test_smoothing_is_taken_where_channels_have_outliers() -> None:
    sample = make_product(3, 40)
    rough = list_roundings(sample, "int8", smoothing=False)[0]
    smooth = list_roundings(sample, "int8")[0]
    assert (rough.recipe.smoothing, rough.strength) == (None, 0.0)
    assert smooth.error < rough.error / 10
    assert smooth.strength in STRENGTHS
    assert smooth.recipe.smoothing is not None
    assert set(np.argsort(smooth.recipe.smoothing)[-2:]) == {3, 40}
    assert np.log(smooth.recipe.smoothing).mean() == pytest.approx(0, abs=1e-5)
    assert smooth.recipe.activation_max == float((sample.max_abs / smooth.recipe.smoothing).max())


@pytest.mark.parametrize("scheme", CALIBRATED)
def test_smoothing_is_not_taken_without_outliers(scheme: str) -> None:
    for rounding in list_roundings(make_product(), scheme):
        assert (rounding.recipe.smoothing, rounding.strength) == (None, 0.0)


@pytest.mark.parametrize("scheme", ["int4", "fp8"])
def test_only_whole_numbers_are_smoothed(scheme: str) -> None:
    (rounding,) = list_roundings(make_product(3), scheme)
    assert rounding.recipe.smoothing is None


@pytest.mark.parametrize("outliers", [(), (3, 40)])
def test_int8_ends_in_two_terms(outliers: tuple[int, ...]) -> None:
    sample = make_product(*outliers)
    first, last = list_roundings(sample, "int8", smoothing=False)
    assert (first.recipe.terms, last.recipe.terms) == (1, 2)
    assert last.error < first.error
    assert last.recipe.activation_max == first.recipe.activation_max == float(sample.max_abs.max())


def test_the_error_is_that_of_the_product() -> None:
    sample = make_product()
    rounding = list_roundings(sample, "int8")[0]
    x, weight = sample.x.astype(np.float64), sample.weight.astype(np.float64)
    step = np.abs(x).max() / 127
    rounded = INT8.round_activation(sample.x, float(step)) @ INT8.round_weight(sample.weight).dequantize()
    expected = np.sqrt(np.square(rounded - x @ weight).mean() / np.square(x @ weight).mean())
    assert rounding.error == pytest.approx(expected, rel=1e-3)
    assert 0.001 < rounding.error < 0.05


def test_more_bits_cost_less() -> None:
    errors = {scheme: list_roundings(make_product(), scheme)[0].error for scheme in CALIBRATED}
    assert errors["int8"] < errors["fp8"] < errors["int4"]


@pytest.mark.parametrize("scheme", CALIBRATED)
def test_what_is_always_zero_can_be_rounded(scheme: str) -> None:
    nothing = ProductSample(np.zeros((K, N), np.float32), np.zeros((9, K), np.float32), np.zeros(K, np.float32))
    for rounding in list_roundings(nothing, scheme):
        assert rounding.error == 0
        assert rounding.recipe.activation_max in (None, 1.0)


def test_a_dead_channel_does_not_spoil_the_smoothing_of_the_others() -> None:
    sample = make_product(3)
    x = sample.x.copy()
    x[:, 7] = 0
    first = list_roundings(ProductSample(sample.weight, x, np.abs(x).max(axis=0)), "int8")[0]
    assert first.recipe.smoothing is not None
    assert np.isfinite(first.recipe.smoothing).all()
    assert first.error < 0.02
