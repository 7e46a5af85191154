from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from flash_export.validators.report.summary import (
    RowGroup,
    find_fastest,
    find_measures,
    find_random_measures,
    group_by_backend,
    group_by_length,
    phrase_verdict,
)
from flash_export.validators.report.validation import describe_validation
from flash_export.validators.results import HeldoutScores
from tests.validators.report.builders import (
    BITS,
    DECLARED,
    FAILED,
    FULL,
    MIXED,
    QUANTIZED,
    SKIPPED,
    make_invariance,
    make_passed,
    make_report,
)

if TYPE_CHECKING:
    from flash_export.validators.results import Row, ValidationReport


def phrase(report: ValidationReport) -> str:
    return phrase_verdict(report, group_by_backend(report.rows))


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
    document = describe_validation(make_report(*rows))
    assert (document.word, document.headline) == (word, verdict)


def test_speed_is_told_of_a_backend_that_is_right() -> None:
    wrong = make_passed(4096, backend="onnx:other", speedup=50.0), replace(FAILED, backend="onnx:other")
    right = make_passed(4096), make_passed(4096, backend="trt:small", speedup=9.0)
    fastest = find_fastest(group_by_backend((*wrong, *right)))
    assert fastest is not None
    assert fastest.backend == "trt:small"
    assert find_fastest(group_by_backend((SKIPPED,))) is None


def test_lengths_are_grouped_up_to_powers_of_two() -> None:
    lengths = (1, 2, 3, 4, 100, 127, 128, 129, 256, 257)
    groups = group_by_length(RowGroup("ort-cpu", tuple(make_passed(length) for length in reversed(lengths))))
    assert [group.label for group in groups] == ["1", "2", "3-4", "100-128", "129-256", "257"]
    assert [len(group.rows) for group in groups] == [1, 1, 2, 3, 2, 1]


def test_group_has_the_status_of_its_worst_row() -> None:
    rows = (*MIXED.rows[:-1], replace(SKIPPED, batch=1, seq_len=5000))
    groups = group_by_length(RowGroup("ort-cpu", rows))
    assert [(group.label, group.status, group.counts) for group in groups] == [
        ("257-301", "failed", "2 passed, 2 failed"), ("1024", "passed", "1 passed"), ("5000", "skipped", "1 skipped")
    ]  # fmt: skip
    assert groups[0].worst == FAILED
    assert groups[0].timed == make_passed()
    assert groups[2].worst is groups[2].timed is None


def test_backends_are_summed_up_one_by_one() -> None:
    ours, skipped, small = group_by_backend(FULL.rows)
    assert (ours.status, ours.counts) == ("failed", "4 passed, 3 failed")
    assert ours.timed is not None
    assert ours.timed.seq_len == 1024
    assert [row.check for row in ours.invariances] == ["repeat", "padding"]
    assert (skipped.backend, skipped.status) == ("trt:big", "skipped")
    assert small.status == "passed"


def test_check_of_declared_shapes_does_not_make_a_backend_skipped() -> None:
    (other,) = group_by_backend((DECLARED, make_passed(backend="onnx:other")))
    assert (other.status, other.invariances) == ("failed", (DECLARED,))


def test_verdict_of_a_quantized_bundle_is_of_what_it_loses() -> None:
    assert phrase(QUANTIZED) == (
        "The int8 model loses no more than it may: 0.34% more bits per byte, 0.50% is accepted."
    )
    assert phrase(replace(QUANTIZED, scores=None)) == "The int8 model loses no more than it may."
    better = replace(QUANTIZED, scores=HeldoutScores(BITS, {"eager": 1.0, "ort-cpu": 0.99}))
    assert "may: 1.0% fewer bits per byte, 0.50% is accepted" in phrase(better)
    lost = replace(FAILED, reason="held-out data: bits per byte 0.99", name="heldout-score")
    worse = replace(QUANTIZED, rows=(*QUANTIZED.rows, lost))
    assert phrase(worse) == "The int8 model loses more than it may."
    far = replace(QUANTIZED, rows=(*QUANTIZED.rows, FAILED))
    assert phrase(far) == "The int8 model is further from the original than few bits explain."
    broken = replace(QUANTIZED, rows=(*QUANTIZED.rows, make_invariance("padding", reason="it differs")))
    assert phrase(broken) == "The int8 model breaks what must hold of any model."
    several = (*worse.rows, make_passed(backend="trt:a"), replace(FAILED, backend="trt:b"))
    assert phrase(replace(worse, rows=several)) == "ort-cpu and trt:b lose more than they may."


@pytest.mark.parametrize("report", [QUANTIZED, make_report(make_passed())])
def test_verdict_under_a_tolerance_of_the_user_claims_nothing_else(report: ValidationReport) -> None:
    precision = report.environment["precision"]
    given = replace(report, environment={"precision": precision, "tolerance": "0.1 and 0 of the largest output"})
    assert phrase(given).endswith("model stays within the tolerance that was given.")
    failed = replace(given, rows=(FAILED,))
    assert phrase(failed).endswith("model does not stay within the tolerance that was given.")


def test_measures_of_a_quantized_bundle_are_those_of_held_out_data_where_there_is_any() -> None:
    assert find_measures(QUANTIZED, QUANTIZED.rows) == {"top1_agreement": 0.976, "kl_bits": 0.008}
    assert find_random_measures(QUANTIZED) == {"top1_agreement": 0.5, "kl_bits": 0.07}
    no_text = replace(QUANTIZED, rows=QUANTIZED.rows[:2])
    assert find_measures(no_text, no_text.rows)["top1_agreement"] == 0.5
    assert find_random_measures(no_text) == find_random_measures(FULL) == {}
