from __future__ import annotations

import numpy as np
import pytest

from flash_export.config import Tolerance
from flash_export.validators.accuracy import AccuracyResult, compare_outputs

RNG = np.random.default_rng(0)
EXPECTED = RNG.standard_normal((2, 5, 4)).astype(np.float32) * 10
ALL_VALID = np.ones((2, 5), dtype=bool)


def compare(actual: np.ndarray, valid: np.ndarray = ALL_VALID, expected: np.ndarray = EXPECTED) -> AccuracyResult:
    return compare_outputs(expected, actual, valid, Tolerance(rtol=1e-3))


def test_equal_outputs_agree() -> None:
    result = compare(EXPECTED.copy())
    assert result
    assert (result.max_abs_error, result.max_rel_error, result.top1_agreement) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(("factor", "accepted"), [(0.9, True), (1.1, False)])
def test_limit_is_relative_to_the_largest_expected_magnitude(factor: float, accepted: bool) -> None:
    scale = float(np.abs(EXPECTED).max())
    actual = EXPECTED.copy()
    actual[1, 2, 3] += np.float32(factor * 1e-3 * scale)
    result = compare(actual)

    assert bool(result) == accepted
    assert result.tolerance == pytest.approx(1e-3 * scale)
    assert result.max_abs_error == pytest.approx(factor * 1e-3 * scale, rel=1e-2)
    assert result.max_rel_error == pytest.approx(factor * 1e-3, rel=1e-2)
    assert accepted or "exceeds the tolerance" in str(result.reason)


def test_padding_is_not_compared() -> None:
    actual, valid = EXPECTED.copy(), ALL_VALID.copy()
    actual[1, 3:] = np.nan
    valid[1, 3:] = False
    assert compare(actual, valid)
    assert not compare(actual)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_fail(bad: float) -> None:
    broken = EXPECTED.copy()
    broken[0, 0, 0] = bad
    assert "NaN or infinity in 1 values" in str(compare(broken).reason)
    assert "eager model itself" in str(compare(EXPECTED, expected=broken).reason)
    assert not compare(broken, expected=broken)


def test_wrong_shape_and_dtype_fail() -> None:
    assert "shape (2, 4, 4), expected (2, 5, 4)" in str(compare(EXPECTED[:, :4]).reason)
    assert "dtype float64, expected float32" in str(compare(EXPECTED.astype(np.float64)).reason)
    half = EXPECTED.astype(np.float16)
    assert compare_outputs(EXPECTED, half, ALL_VALID, Tolerance(rtol=1e-2), dtype="float16")


def test_agreement_of_the_top_token_is_counted() -> None:
    actual = EXPECTED.copy()
    actual[0, 0] = -actual[0, 0]
    assert compare(actual).top1_agreement == pytest.approx(0.9)


def test_long_rows_are_compared_to_their_end() -> None:
    expected = np.zeros((1, 10000, 2), dtype=np.float32)
    actual = expected.copy()
    actual[0, -1, -1] = 1.0
    assert compare_outputs(expected, actual, np.ones((1, 10000), dtype=bool), Tolerance()).max_abs_error == 1.0
