"""A bundle that another good one takes the place of is not reported as a wrong model."""

from __future__ import annotations

import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from flash_export.bundle.bundle import Bundle
from flash_export.errors import BundleError
from flash_export.files import replace_folder
from flash_export.validators.bisect.bisect import BisectOptions, bisect_bundle
from flash_export.validators.ranges.profile import RangesOptions, profile_ranges
from flash_export.validators.trade_off.compare import CompareOptions, compare_bundles
from flash_export.validators.validate import validate_bundle
from flash_export.validators.validation_options import ValidationOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

VALIDATION = ValidationOptions(seq_lens=(1, 5, 9), batches=(1,), backends=("ort-cpu",), threads=1, latency_budget_s=0.0)
COMMANDS: dict[str, Callable[..., Any]] = {
    "validate": lambda bundle, progress: validate_bundle(bundle, VALIDATION, progress),
    "bisect": lambda bundle, progress: bisect_bundle(bundle, BisectOptions(threads=1), progress=progress),
    "profile-ranges": lambda bundle, progress: profile_ranges(
        bundle, RangesOptions(windows=1, random=True, threads=1), progress
    ),
    "compare": lambda bundle, progress: compare_bundles(
        [bundle], CompareOptions(threads=1, windows=2, latency_budget_s=0.0), progress
    ),
}


def exchange(bundle: Bundle, other: Bundle) -> None:
    """Put the other bundle in the place of this one, as an export with --force does."""
    with replace_folder(bundle.path) as staging:
        shutil.copytree(other.path, staging, dirs_exist_ok=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_replacement_while_it_runs_is_told(bundle: Bundle, masked_byte_bundle: Bundle, name: str) -> None:
    calls: list[tuple[object, ...]] = []

    def progress(*call: object) -> None:
        if not calls:
            exchange(bundle, masked_byte_bundle)
        calls.append(call)

    with pytest.raises(BundleError, match=r"bundle was replaced while it was read; run it again"):
        COMMANDS[name](bundle, progress)
    assert calls


@pytest.mark.parametrize("name", COMMANDS)
def test_replacement_before_it_runs_is_told(bundle: Bundle, masked_byte_bundle: Bundle, name: str) -> None:
    exchange(bundle, masked_byte_bundle)
    with pytest.raises(BundleError, match=r"bundle was replaced while it was read; run it again"):
        COMMANDS[name](bundle, None)


@pytest.mark.parametrize("place", ["load_model", "list_engines", "read_quantization"])
def test_replacement_at_any_point_of_a_validation_is_told(
    bundle: Bundle, masked_byte_bundle: Bundle, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    method = getattr(Bundle, place)
    first = [partial(exchange, bundle, masked_byte_bundle)]

    def exchange_then_read(self: Bundle) -> object:
        while first:
            first.pop()()
        return method(self)

    monkeypatch.setattr(Bundle, place, exchange_then_read)
    with pytest.raises(BundleError, match="was replaced while it was read"):
        validate_bundle(bundle, VALIDATION, journal_path=tmp_path / "journal")


def test_engine_that_is_added_meanwhile_is_no_replacement(bundle: Bundle) -> None:
    def progress(*_: object) -> None:
        (bundle.path / "engines").mkdir(exist_ok=True)

    assert COMMANDS["validate"](bundle, progress)
