from __future__ import annotations

import math

import numpy as np
import pytest

from flash_export.models.flash import FlashConfig
from flash_export.validators.bisect.deviation import Deviation, build_region, describe_deviation, measure_deviation

QUANTITIES = FlashConfig(23, 4, 1, 6).quantities
TOKENS = np.random.default_rng(0).normal(size=(2, 6, 4))
EVERYWHERE = np.ones((1, 1, 1), dtype=bool)


def describe(actual: np.ndarray, kind: str = "tokens", expected: np.ndarray = TOKENS) -> str:
    region = np.ones((1,) * expected.ndim, dtype=bool)
    return describe_deviation(measure_deviation(expected, actual, region), kind, 1e-6)  # type: ignore[arg-type]


def test_error_is_a_fraction_of_the_largest_expected_magnitude() -> None:
    actual = TOKENS.copy()
    actual[1, 2, 3] += 0.5
    found = measure_deviation(TOKENS, actual, EVERYWHERE)
    assert found.error == pytest.approx(0.5 / np.abs(TOKENS).max())
    assert found.is_finite


def test_zeros_are_compared_absolutely() -> None:
    zeros = np.zeros((1, 2, 2))
    assert measure_deviation(zeros, zeros, EVERYWHERE).error == 0
    assert measure_deviation(zeros, zeros + 1e-9, EVERYWHERE).error == pytest.approx(1e-9)


def test_what_is_outside_of_the_region_does_not_count() -> None:
    valid = np.array([[True, True, False], [True, False, False]])
    expected = np.ones((2, 3, 4))
    actual = np.where(valid[..., None], expected, np.nan)
    found = measure_deviation(expected, actual, build_region(QUANTITIES["gate"], expected.shape, valid))
    assert found.error == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_is_found(value: float) -> None:
    actual = TOKENS.copy()
    actual[0, 3:] = value
    found = measure_deviation(TOKENS, actual, EVERYWHERE)
    assert not found.is_finite
    assert describe_deviation(found, "tokens", 1e-6) == "row 0 of the batch alone, from token 3 on"


def test_values_of_padding_are_compared_because_they_are_zero() -> None:
    valid = np.array([[True, False]])
    assert build_region(QUANTITIES["value"], (1, 2, 3), valid).all()
    assert not build_region(QUANTITIES["gate"], (1, 2, 3), valid).all()
    assert build_region(QUANTITIES["kv"], (1, 1, 3, 3), valid).all()


def test_pairs_of_chunks_and_of_whole_sequences() -> None:
    valid = np.array([[True, True, True, False, False]])
    chunks = build_region(QUANTITIES["weights"], (1, 2, 3, 3), valid)
    assert chunks.shape == (1, 2, 3, 3)
    assert chunks[0, 0].all()
    assert not chunks[0, 1].any()
    whole = build_region(QUANTITIES["weights"], (1, 5, 5), valid)
    assert whole.sum() == 9


def test_one_factor_is_told() -> None:
    assert describe(0.5 * TOKENS) == "0.5 times the reference"
    assert describe(-2 * TOKENS) == "-2 times the reference"


def test_places_and_channels_are_told() -> None:
    actual = TOKENS.copy()
    actual[:, :, 2] += 1
    assert describe(actual) == "channel 2 alone"
    actual = TOKENS.copy()
    actual[:, 4:, 1:3] += 1
    assert describe(actual) == "from token 4 on, 2 of 4 channels"
    actual = TOKENS.copy()
    actual[1, [0, 3], 0] += 1
    assert describe(actual) == "row 1 of the batch alone, 2 of 6 tokens, the first being 0, channel 0 alone"
    actual = TOKENS + np.random.default_rng(1).normal(size=TOKENS.shape)
    assert describe(actual) == ""


def test_pairs_and_sums_are_told() -> None:
    pairs = np.random.default_rng(0).random((1, 2, 4, 4))
    actual = pairs.copy()
    actual[:, :, 1, 2] = 9
    assert describe(actual, "pairs", pairs) == "6.2% of the pairs, the first being query 1 and key 2"
    sums = np.random.default_rng(0).random((1, 3, 4, 5))
    actual = sums.copy()
    actual[:, 1:, :, 3] = 9
    assert describe(actual, "sums", sums) == "from chunk 1 on, value channel 3 alone"


def test_a_deviation_without_a_factor_says_nothing_of_one() -> None:
    zeros = np.zeros((1, 2, 2))
    assert measure_deviation(zeros, zeros + 1, EVERYWHERE).factor is None
    assert isinstance(measure_deviation(zeros, zeros, EVERYWHERE), Deviation)
