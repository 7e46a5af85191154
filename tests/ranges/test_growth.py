from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flash_export.ranges.growth import FP16_MAX, fit_growth

LENGTHS = [256, 512, 1024, 2048, 4096]


@given(st.floats(0.2, 2.0), st.floats(1.5, 9.0))
def test_exact_power_law_is_followed_to_its_horizon(power: float, digits: float) -> None:
    horizon = 10**digits
    sizes = [FP16_MAX * (length / horizon) ** power for length in LENGTHS]
    growth = fit_growth(LENGTHS, sizes)
    assert growth.power == pytest.approx(power)
    if horizon < 4096:
        assert growth.verdict == "exceeded"
        assert growth.horizon == next(length for length in LENGTHS if length > horizon)
    elif growth.horizon is not None:
        assert growth.verdict == "grows"
        assert growth.horizon == pytest.approx(horizon, rel=1e-6)
    else:
        assert horizon > 0.99e9


def test_interval_holds_the_truth_in_spite_of_noise() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        sizes = [0.01 * length**0.5 * math.exp(0.1 * rng.normal()) for length in LENGTHS]
        growth = fit_growth(LENGTHS, sizes)
        assert growth.power_interval is not None
        hits += growth.power_interval[0] <= 0.5 <= growth.power_interval[1]
    assert 180 <= hits <= 199


@pytest.mark.parametrize("sizes", [[3.0] * 5, [3.1, 2.9, 3.2, 2.8, 3.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
def test_what_does_not_grow_has_no_horizon(sizes: list[float]) -> None:
    growth = fit_growth(LENGTHS, sizes)
    assert (growth.verdict, growth.horizon) == ("no growth", None)


def test_slow_growth_is_beyond_every_length() -> None:
    growth = fit_growth(LENGTHS, [length**0.1 for length in LENGTHS])
    assert (growth.verdict, growth.horizon) == ("grows", None)


def test_zeros_are_left_out_and_two_points_tell_nothing() -> None:
    assert fit_growth(LENGTHS, [0.0, 0.0, 0.0, 1.0, 2.0]).verdict == "unknown"
    growth = fit_growth(LENGTHS, [0.0, 0.0, 1.0, 2.0, 4.0])
    assert growth.power == pytest.approx(1.0)


@pytest.mark.parametrize("value", [1e5, math.inf, math.nan])
def test_measured_overflow_is_told_with_its_length(value: float) -> None:
    growth = fit_growth(LENGTHS, [1.0, 10.0, 100.0, value, value])
    assert (growth.verdict, growth.horizon) == ("exceeded", 2048.0)
