from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from flash_export.interface import Bins, Features, Interface, TensorSpec
from flash_export.limits import ERROR_BUDGETS, QUANTIZATION_BUDGETS, ErrorBudget, Tolerance
from flash_export.models.token_model import describe_token_model
from flash_export.validators.accuracy import AccuracyResult, compare_outputs

if TYPE_CHECKING:
    from flash_export.limits import Limit

TOKENS = describe_token_model(4, needs_mask=False, is_causal=True)
POSE = Interface(
    inputs=(TensorSpec("features", "float32", ("batch", 3), Features()),),
    outputs=tuple(TensorSpec(f"simcc_{axis}", "float32", ("batch", 2, 40), Bins(2.0)) for axis in "xy"),
    task="keypoints",
    unit="keypoints",
    padding="refused",
    fixed_len=2,
)
RNG = np.random.default_rng(0)
EXPECTED = RNG.standard_normal((2, 5, 4)).astype(np.float32) * 10
ALL_VALID = np.ones((2, 5), dtype=bool)


def compare_logits(
    expected: np.ndarray,
    eager: np.ndarray,
    actual: np.ndarray,
    limit: Limit,
    valid: np.ndarray | None = None,
    specs: tuple[TensorSpec, ...] | None = None,
) -> AccuracyResult:
    compared = np.ones(expected.shape[:2], dtype=bool) if valid is None else valid
    wanted, own, found = ({"logits": values} for values in (expected, eager, actual))
    return compare_outputs(TOKENS, wanted, own, found, compared, limit, specs=specs)


def compare(actual: np.ndarray, valid: np.ndarray = ALL_VALID, expected: np.ndarray = EXPECTED) -> AccuracyResult:
    return compare_logits(expected.astype(np.float64), expected, actual, Tolerance(rtol=1e-3), valid)


def test_equal_outputs_agree() -> None:
    result = compare(EXPECTED.copy())
    assert result
    assert (result.max_abs_error, result.max_rel_error) == (0.0, 0.0)
    assert result.measures == {"top1_agreement": 1.0, "kl_bits": 0.0}


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
    assert "logits has NaN or infinity in 1 values" in str(compare(broken).reason)
    assert "reference itself" in str(compare(EXPECTED, expected=broken).reason)
    assert not compare(broken, expected=broken)


def test_wrong_shape_and_dtype_fail() -> None:
    assert "shape (2, 4, 4), expected (2, 5, 4)" in str(compare(EXPECTED[:, :4]).reason)
    assert "dtype float64, expected float32" in str(compare(EXPECTED.astype(np.float64)).reason)
    half = (TensorSpec("logits", "float16", ("batch", "seq", 4)),)
    assert compare_logits(EXPECTED, EXPECTED, EXPECTED.astype(np.float16), Tolerance(rtol=1e-2), specs=half)


def test_agreement_of_the_top_token_is_counted() -> None:
    actual = EXPECTED.copy()
    actual[0, 0] = -actual[0, 0]
    assert compare(actual).measures["top1_agreement"] == pytest.approx(0.9)


def test_long_rows_are_compared_to_their_end() -> None:
    expected = np.zeros((1, 10000, 2), dtype=np.float32)
    actual = expected.copy()
    actual[0, -1, -1] = 1.0
    assert compare_logits(expected, expected, actual, Tolerance()).max_abs_error == 1.0


@pytest.mark.parametrize(("factor", "accepted"), [(7.9, True), (8.1, False)])
def test_budget_is_a_multiple_of_the_eager_models_own_error(factor: float, accepted: bool) -> None:
    exact = EXPECTED.astype(np.float64)
    eager, actual = exact.copy(), exact.copy()
    eager[0, 1, 1] += 1e-3
    actual[1, 2, 3] -= factor * 1e-3
    result = compare_logits(exact, eager, actual, ErrorBudget(noise_ratio=8.0, floor=1e-9))

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

    assert compare_logits(exact, exact, actual, budget)
    assert not compare_logits(exact, exact, exact + 9e-6 * scale, budget)
    assert compare_logits(exact, overflowing, actual, budget).tolerance == pytest.approx(8e-6 * scale)


def test_divergence_is_that_of_the_predicted_distributions() -> None:
    exact = np.log(np.array([[[0.5, 0.25, 0.25]]]))
    result = compare_logits(exact, exact, np.zeros((1, 1, 3)), Tolerance(rtol=10.0))

    assert result.measures["kl_bits"] == pytest.approx(np.log2(3) - 1.5)


def test_a_quantized_graph_fails_by_its_divergence() -> None:
    limit = QUANTIZATION_BUDGETS["fp8"]
    exact = np.log(np.array([[[0.5, 0.49, 0.01]]]))
    other = exact + np.array([-1.0, 1.0, 0.0])
    result = compare_logits(exact, exact, other, limit)
    assert (result.max_abs_error or 0.0) <= (result.tolerance or 0.0)
    assert result.measures["kl_bits"] > limit.measures["kl_bits"]
    assert "divergence" in str(result.reason)
    assert "accepted are 0.1 bits" in str(result.reason)


@pytest.mark.parametrize("limit", [ERROR_BUDGETS["fp32"], QUANTIZATION_BUDGETS["int8"], Tolerance(rtol=1e-3)])
def test_reason_tells_multiples_of_the_eager_model_only_where_these_decide(limit: Limit) -> None:
    result = compare_logits(EXPECTED.astype(np.float64), EXPECTED + np.float32(1e-5), -EXPECTED, limit)
    assert not result
    assert ("times the eager model's own" in str(result.reason)) == (limit.noise_ratio is not None)


def test_of_several_outputs_the_one_that_is_furthest_beyond_its_limit_is_told() -> None:
    rng = np.random.default_rng(1)
    exact = {"simcc_x": rng.standard_normal((1, 2, 40)), "simcc_y": 100 * rng.standard_normal((1, 2, 40))}
    actual = {name: values.copy() for name, values in exact.items()}
    actual["simcc_x"][0, 1, 7] += 1.0
    actual["simcc_y"][0, 0, 3] += 2.0
    compared = np.ones((1, 2), dtype=bool)
    result = compare_outputs(POSE, exact, exact, actual, compared, Tolerance(atol=0.0, rtol=1e-2))
    assert result.output == "simcc_x"
    assert "of simcc_x exceeds the tolerance" in str(result.reason)
    assert result.measures.keys() == {"pixel_error", "within_half_pixel"}


def test_limits_describe_themselves() -> None:
    assert ERROR_BUDGETS["fp32"].describe() == {
        "error_limit": "8 times the eager model's own error",
        "accepted_loss": "0.05%",
    }
    assert QUANTIZATION_BUDGETS["int4"].describe() == {
        "error_limit": "50% of the largest output",
        "kl_bits_limit": "0.2",
        "accepted_loss": "2.00%",
    }
    assert Tolerance(0.5, 1e-3).describe() == {"tolerance": "0.5 and 0.001 of the largest output"}
