"""What tests of the scripts in ``examples`` share."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def load_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import a module the way the scripts do: with ``examples`` as the first folder of the search path."""
    monkeypatch.syspath_prepend(EXAMPLES)
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)
