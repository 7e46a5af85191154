from __future__ import annotations

import doctest

import pytest

from flash_export.validators.latency import Percentiles
from flash_export.validators.report import formatting
from flash_export.validators.report.formatting import format_interval, format_shape, format_share
from tests.validators.report.builders import DECLARED, FAILED, SKIPPED, make_passed


def test_examples() -> None:
    results = doctest.testmod(formatting)
    assert results.attempted >= 6
    assert results.failed == 0


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [(12.1, 12.9, "12.1 to 12.9 ms"), (990.0, 1010.0, "990 ms to 1.01 s"), (1010.0, 1050.0, "1.01 to 1.05 s")],
)
def test_interval_names_its_unit_once_if_it_is_one(low: float, high: float, text: str) -> None:
    assert format_interval(Percentiles(low, low, low, low, high, 5)) == text


def test_shapes_and_shares() -> None:
    assert format_shape(FAILED) == "batch 3, length 300, masked"
    assert format_shape(make_passed(9, inputs="recorded")) == "batch 1, length 9, held-out"
    assert format_shape(SKIPPED) == "not tried"
    assert format_shape(DECLARED) == "any shape"
    assert format_share(FAILED) == "2,000 times the limit"
    assert format_share(make_passed()) == "16% of the limit"
