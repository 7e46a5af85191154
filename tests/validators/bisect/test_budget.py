from __future__ import annotations

import math

import pytest

from flash_export.config import SCHEMES
from flash_export.limits import ERROR_BUDGETS, QUANTIZATION_BUDGETS
from flash_export.validators.bisect.budget import compute_limit, pick_coarser


def test_limit_is_a_multiple_of_the_noise_but_not_of_nothing() -> None:
    budget = ERROR_BUDGETS["fp32"]
    assert compute_limit(1e-3, "fp32") == pytest.approx(budget.noise_ratio * 1e-3)
    for noise in (0.0, None, math.inf, math.nan):
        assert compute_limit(noise, "fp32") == pytest.approx(budget.noise_ratio * budget.floor)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantized_graphs_are_held_to_what_validate_accepts(scheme: str) -> None:
    assert compute_limit(None, scheme) == compute_limit(1e-3, scheme) == QUANTIZATION_BUDGETS[scheme].error


def test_the_coarser_precision_is_that_which_accepts_more() -> None:
    assert pick_coarser("fp32", "fp16") == "fp16"
    assert pick_coarser("fp32") == "fp32"
    assert pick_coarser("int8", "fp16") == "int8"
    assert pick_coarser("bf16", "fp16") == "bf16"
    assert pick_coarser("fp8", "int4") == "int4"
