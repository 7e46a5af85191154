from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from flash_export.validators.report.summary import summarize
from tests.validators.report.builders import (
    CRASHED,
    FAILED,
    FULL,
    SKIPPED,
    make_invariance,
    make_passed,
    make_report,
)

if TYPE_CHECKING:
    from flash_export.validators.results import Row


@pytest.mark.parametrize(
    ("rows", "word", "verdict"),
    [
        ((make_passed(), SKIPPED), "PASSED", "The exported model gives the same answers as the original."),
        ((make_passed(), FAILED), "FAILED", "The exported model does not give the same answers as the original."),
        (
            (make_passed(), replace(FAILED, backend="onnx:other")),
            "FAILED",
            "onnx:other does not give the same answers as the original.",
        ),
        ((SKIPPED,), "NOT VALIDATED", "Nothing was checked, so nothing is proven."),
        ((), "NOT VALIDATED", "Nothing was checked, so nothing is proven."),
    ],
)
def test_verdict_names_who_is_wrong(rows: tuple[Row, ...], word: str, verdict: str) -> None:
    summary = summarize(make_report(*rows))
    assert (summary.word, summary.verdict) == (word, verdict)


def test_what_was_compared() -> None:
    summary = summarize(FULL)
    assert (summary.lengths[0], summary.lengths[-1], summary.batches) == (257, 1024, (1, 3))
    assert summary.any_masked
    assert summary.any_text
    assert summary.worst == FAILED
    assert summary.lowest_agreement == FAILED.top1_agreement
    assert summary.highest_kl_bits == FAILED.kl_bits
    assert summary.counts == "7 passed, 3 failed, 1 skipped"
    assert summary.total == 11


def test_speed_is_told_of_a_backend_that_is_right() -> None:
    wrong = make_passed(4096, backend="onnx:other", speedup=50.0), replace(FAILED, backend="onnx:other")
    right = make_passed(4096), make_passed(4096, backend="trt:small", speedup=9.0)
    fastest = summarize(make_report(*wrong, *right)).fastest
    assert fastest is not None
    assert fastest.name == "trt:small"
    assert summarize(make_report(SKIPPED)).fastest is None


def test_reasons_that_differ_in_numbers_alone_are_one_with_the_worst_row() -> None:
    failures = [
        replace(FAILED, seq_len=300 + index, max_abs_error=float(index + 1), reason=f"error {index}.5e-03 exceeds")
        for index in range(20)
    ]
    first, second, third = summarize(make_report(make_passed(), *failures, CRASHED, SKIPPED)).reasons

    assert (first.text, first.count) == ("error 19.5e-03 exceeds", 20)
    assert first.where == "batch 3, length 319, masked, and 19 like it"
    assert (second.text, second.where) == (CRASHED.reason, "batch 1, length 301")
    assert (third.status, third.where) == ("skipped", "")


def test_many_reasons_are_cut_short_but_counted() -> None:
    failures = [replace(FAILED, reason=f"error {chr(ord('a') + index)}") for index in range(20)]
    summary = summarize(make_report(make_passed(), *failures, SKIPPED))

    assert [reason.text for reason in summary.reasons] == [*(f"error {name}" for name in "abcdef"), SKIPPED.reason]
    assert summary.hidden_reasons == 14


def test_invariances_do_not_count_as_compared_lengths() -> None:
    summary = summarize(make_report(make_passed(9), make_invariance("repeat")))
    assert summary.lengths == (9,)
