"""Damaged files and odd options: one line of error, or an answer; never a crash, a hang, or a file elsewhere.

To see inputs again: ``FUZZ_INPUTS=17,403 .venv/bin/python -m pytest -n 0 tests/fuzz -k some``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.fuzz.material import make_material
from tests.fuzz.workers import fuzz

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle

SEED = 2202_10447
QUICK_INPUTS, INPUTS = 20, 3000


@pytest.fixture(scope="session")
def material(
    causal_byte_bundle: Bundle,
    masked_byte_bundle: Bundle,
    int8_bundle: Bundle,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Write good files of every kind; not to be changed."""
    return make_material(tmp_path_factory.mktemp("material"), causal_byte_bundle, masked_byte_bundle, int8_bundle)


def check(inputs: Sequence[int], material: Path, folder: Path) -> None:
    findings = fuzz(SEED, inputs, material, folder, processes=os.cpu_count() or 1)
    shown = "\n".join(map(str, findings))
    assert not findings, f"{len(findings)} of the {len(inputs)} inputs of seed {SEED}:\n{shown}"


def test_some_inputs(material: Path, tmp_path: Path) -> None:
    named = os.environ.get("FUZZ_INPUTS")
    check([int(index) for index in named.split(",")] if named else range(QUICK_INPUTS), material, tmp_path)


@pytest.mark.slow
def test_all_inputs(material: Path, tmp_path: Path) -> None:
    check(range(QUICK_INPUTS, QUICK_INPUTS + INPUTS), material, tmp_path)
