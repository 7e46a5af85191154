from __future__ import annotations

import pytest

from flash_export.validators.diagnosis import diagnose_rows
from flash_export.validators.results import Row

CHUNK = 8


def make_rows(right: list[int], wrong: list[int]) -> list[Row]:
    return [
        Row("ort-cpu", "forward", 1, length, False, "passed" if length in right else "failed")
        for length in sorted(right + wrong)
    ]


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ([16], [1, 8, 17], "the length that it was traced with is baked"),
        ([8, 16, 32], [1, 7, 9, 30], "only multiples of the chunk of 8 are right"),
        ([1, 7, 9], [8, 16], "it pads where nothing needs padding"),
        ([1, 2, 8], [9, 16, 30], "only the first chunk of 8 is right"),
        ([1, 8, 9, 30], [31, 64], "right up to 30 and wrong from 31 on"),
        ([9, 16], [1, 8], "wrong up to 8 and right from 9 on"),
        ([], [1, 8, 9], "wrong at every length"),
    ],
)
def test_patterns_of_lengths_are_explained(right: list[int], wrong: list[int], words: str) -> None:
    (sentence,) = diagnose_rows(make_rows(right, wrong), CHUNK)
    assert sentence.startswith("ort-cpu: ")
    assert words in sentence


def test_failing_lengths_are_listed() -> None:
    (sentence,) = diagnose_rows(make_rows([8, 16], [1, 2, 3, 4, 5, 6, 7, 9]), CHUNK)
    assert "fails at the lengths 1, 2, 3, 4, 5, 6 and 2 more and is right at 8, 16" in sentence


def test_mask_and_batch_are_told_from_lengths() -> None:
    masked = [Row("a", "forward", 1, 9, flag, "failed" if flag else "passed") for flag in (False, True)]
    batched = [Row("b", "forward", batch, 9, False, "failed" if batch > 1 else "passed") for batch in (1, 3)]
    assert "the mask is ignored" in diagnose_rows(masked, CHUNK)[0]
    assert "wrong for a batch of 3" in diagnose_rows(batched, CHUNK)[0]


def test_no_pattern_and_no_failure_say_nothing() -> None:
    assert diagnose_rows(make_rows([1, 9, 20], [7, 16]), CHUNK) == ()
    assert diagnose_rows(make_rows([1, 9], []), CHUNK) == ()
    invariance = Row("a", "forward", 1, 9, False, "failed", check="repeat")
    assert diagnose_rows([invariance], CHUNK) == ()
