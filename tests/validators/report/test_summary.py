from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from flash_export.validators.report.summary import summarize
from flash_export.validators.results import HeldoutScores
from tests.validators.report.builders import (
    BITS,
    CRASHED,
    DECLARED,
    FAILED,
    FULL,
    QUANTIZED,
    SKIPPED,
    make_invariance,
    make_passed,
    make_report,
)

if TYPE_CHECKING:
    from flash_export.validators.results import Row, ValidationReport


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
        (
            (make_passed(), make_invariance("padding", reason="it differs"), make_passed(backend="onnx:other")),
            "FAILED",
            "ort-cpu breaks what must hold of any model.",
        ),
        ((make_passed(), DECLARED), "FAILED", "onnx:other breaks what must hold of any model."),
        ((DECLARED,), "FAILED", "The exported model breaks what must hold of any model."),
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
    assert summary.any_recorded
    assert summary.worst == FAILED
    assert summary.measures == FAILED.measures
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


def test_verdict_of_a_quantized_bundle_is_of_what_it_loses() -> None:
    assert summarize(QUANTIZED).verdict == (
        "The int8 model loses no more than it may: 0.34% more bits per byte, 0.50% is accepted."
    )
    assert summarize(replace(QUANTIZED, scores=None)).verdict == "The int8 model loses no more than it may."
    better = replace(QUANTIZED, scores=HeldoutScores(BITS, {"eager": 1.0, "ort-cpu": 0.99}))
    assert "may: 1.0% fewer bits per byte, 0.50% is accepted" in summarize(better).verdict
    worse = replace(QUANTIZED, rows=(*QUANTIZED.rows, replace(FAILED, reason="held-out data: bits per byte 0.99")))
    assert summarize(worse).verdict == "The int8 model loses more than it may."
    broken = replace(QUANTIZED, rows=(*QUANTIZED.rows, make_invariance("padding", reason="it differs")))
    assert summarize(broken).verdict == "The int8 model breaks what must hold of any model."
    several = (*worse.rows, make_passed(backend="trt:a"), replace(FAILED, backend="trt:b"))
    assert summarize(replace(worse, rows=several)).verdict == "ort-cpu and trt:b lose more than they may."


@pytest.mark.parametrize("report", [QUANTIZED, make_report(make_passed())])
def test_verdict_under_a_tolerance_of_the_user_claims_nothing_else(report: ValidationReport) -> None:
    precision = report.environment["precision"]
    given = replace(report, environment={"precision": precision, "tolerance": "0.1 and 0 of the largest output"})
    assert summarize(given).verdict.endswith("model stays within the tolerance that was given.")
    failed = replace(given, rows=(FAILED,))
    assert summarize(failed).verdict.endswith("model does not stay within the tolerance that was given.")


def test_measures_of_a_quantized_bundle_are_those_of_held_out_data_where_there_is_any() -> None:
    summary = summarize(QUANTIZED)
    assert summary.measures == {"top1_agreement": 0.976, "kl_bits": 0.008}
    assert summary.random_measures == {"top1_agreement": 0.5, "kl_bits": 0.07}
    no_text = summarize(replace(QUANTIZED, rows=QUANTIZED.rows[:2]))
    assert (no_text.measures["top1_agreement"], no_text.random_measures) == (0.5, {})
    assert summarize(FULL).random_measures == {}


def test_a_skip_of_several_backends_for_one_reason_is_told_once() -> None:
    (reason,) = summarize(QUANTIZED).reasons
    assert (reason.who, reason.text, reason.where) == ("ort-cuda and stream:ort-cuda", SKIPPED.reason, "")


def test_every_backend_that_was_not_tried_has_its_reason() -> None:
    engines = [replace(SKIPPED, backend=f"trt:{name}", reason=f"engine {name} needs a GPU") for name in "abcdefghij"]
    summary = summarize(make_report(make_passed(), *engines))
    assert [reason.backends for reason in summary.reasons] == [(engine.backend,) for engine in engines]
    assert summary.hidden_reasons == 0


def test_the_dearest_backend_is_named() -> None:
    bits = {"eager": 1.0, "ort-cpu": 0.9, "trt:small": 1.02}
    dearest = summarize(make_report(make_passed(), make_passed(backend="trt:small"), bits=bits)).dearest
    assert dearest is not None
    assert dearest.name == "trt:small"
