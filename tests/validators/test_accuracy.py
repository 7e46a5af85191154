from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from flash_export.config import ERROR_BUDGETS, QUANTIZATION_BUDGETS, ErrorBudget, Tolerance
from flash_export.validators.accuracy import AccuracyResult, compare_outputs

if TYPE_CHECKING:
    from flash_export.validators.accuracy import Limit

RNG = np.random.default_rng(0)
EXPECTED = RNG.standard_normal((2, 5, 4)).astype(np.float32) * 10
ALL_VALID = np.ones((2, 5), dtype=bool)


def compare(actual: np.ndarray, valid: np.ndarray = ALL_VALID, expected: np.ndarray = EXPECTED) -> AccuracyResult:
    return compare_outputs(expected.astype(np.float64), expected, actual, valid, Tolerance(rtol=1e-3))


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
    assert "reference itself" in str(compare(EXPECTED, expected=broken).reason)
    assert not compare(broken, expected=broken)


def test_wrong_shape_and_dtype_fail() -> None:
    assert "shape (2, 4, 4), expected (2, 5, 4)" in str(compare(EXPECTED[:, :4]).reason)
    assert "dtype float64, expected float32" in str(compare(EXPECTED.astype(np.float64)).reason)
    half = EXPECTED.astype(np.float16)
    assert compare_outputs(EXPECTED, EXPECTED, half, ALL_VALID, Tolerance(rtol=1e-2), dtype="float16")


def test_agreement_of_the_top_token_is_counted() -> None:
    actual = EXPECTED.copy()
    actual[0, 0] = -actual[0, 0]
    assert compare(actual).top1_agreement == pytest.approx(0.9)


def test_long_rows_are_compared_to_their_end() -> None:
    expected = np.zeros((1, 10000, 2), dtype=np.float32)
    actual = expected.copy()
    actual[0, -1, -1] = 1.0
    valid = np.ones((1, 10000), dtype=bool)
    assert compare_outputs(expected, expected, actual, valid, Tolerance()).max_abs_error == 1.0


@pytest.mark.parametrize(("factor", "accepted"), [(7.9, True), (8.1, False)])
def test_budget_is_a_multiple_of_the_eager_models_own_error(factor: float, accepted: bool) -> None:
    exact = EXPECTED.astype(np.float64)
    eager, actual = exact.copy(), exact.copy()
    eager[0, 1, 1] += 1e-3
    actual[1, 2, 3] -= factor * 1e-3
    result = compare_outputs(exact, eager, actual, ALL_VALID, ErrorBudget(noise_ratio=8.0, floor=1e-9))

    assert bool(result) == accepted
    assert result.noise == pytest.approx(1e-3 / np.abs(exact).max())
    assert accepted or "8.1 times the eager model's own" in str(result.reason)


def test_floor_stands_in_for_an_eager_model_without_error_or_with_overflow() -> None:
    exact = EXPECTED.astype(np.float64)
    scale = np.abs(exact).max()
    actual = exact + 7e-6 * scale
    budget = ErrorBudget(noise_ratio=8.0, floor=1e-6)
    overflowing = exact.copy()
    overflowing[0, 0, 0] = np.inf

    assert compare_outputs(exact, exact, actual, ALL_VALID, budget)
    assert not compare_outputs(exact, exact, exact + 9e-6 * scale, ALL_VALID, budget)
    assert compare_outputs(exact, overflowing, actual, ALL_VALID, budget).tolerance == pytest.approx(8e-6 * scale)


def test_divergence_is_that_of_the_predicted_distributions() -> None:
    exact = np.log(np.array([[[0.5, 0.25, 0.25]]]))
    uniform = np.zeros((1, 1, 3))
    result = compare_outputs(exact, exact, uniform, np.ones((1, 1), dtype=bool), Tolerance(rtol=10.0))

    assert result.kl_bits == pytest.approx(np.log2(3) - 1.5)


@pytest.mark.parametrize("limit", [ERROR_BUDGETS["fp32"], QUANTIZATION_BUDGETS["int8"], Tolerance(rtol=1e-3)])
def test_reason_tells_multiples_of_the_eager_model_only_where_these_decide(limit: Limit) -> None:
    expected = EXPECTED.astype(np.float64)
    eager = EXPECTED + np.float32(1e-5)
    result = compare_outputs(expected, eager, -EXPECTED, ALL_VALID, limit)
    assert not result
    assert ("times the eager model's own" in str(result.reason)) == (limit.noise_ratio is not None)


def test_limits_describe_themselves() -> None:
    assert ERROR_BUDGETS["fp32"].describe() == {
        "error_limit": "8 times the eager model's own error",
        "accepted_loss": "0.05%",
    }
    assert QUANTIZATION_BUDGETS["int4"].describe() == {
        "error_limit": "50% of the largest logit",
        "divergence_limit": "0.2 bits per position",
        "accepted_loss": "2.00%",
    }
    assert Tolerance(0.5, 1e-3).describe() == {"tolerance": "0.5 and 0.001 of the largest logit"}
