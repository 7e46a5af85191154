from __future__ import annotations

import doctest
from typing import TYPE_CHECKING

import pytest

from flash_export.validators.trade_off import candidates, speed, text

if TYPE_CHECKING:
    from types import ModuleType


@pytest.mark.parametrize("module", [candidates, speed, text])
def test_examples_in_docstrings_are_true(module: ModuleType) -> None:
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0
