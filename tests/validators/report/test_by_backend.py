from __future__ import annotations

from dataclasses import replace

from flash_export.validators.report.by_backend import group_by_length
from flash_export.validators.report.summary import summarize
from tests.validators.report.builders import DECLARED, FAILED, FOOTPRINT, FULL, MIXED, SKIPPED, make_passed, make_report


def test_lengths_are_grouped_up_to_powers_of_two() -> None:
    lengths = (1, 2, 3, 4, 100, 127, 128, 129, 256, 257)
    groups = group_by_length([make_passed(length) for length in reversed(lengths)])
    assert [group.label for group in groups] == ["1", "2", "3-4", "100-128", "129-256", "257"]
    assert [len(group.rows) for group in groups] == [1, 1, 2, 3, 2, 1]


def test_group_has_the_status_of_its_worst_row() -> None:
    groups = group_by_length([*MIXED.rows, replace(SKIPPED, batch=1, seq_len=5000)])
    assert [(group.label, group.status) for group in groups] == [
        ("257-301", "failed"), ("1024", "passed"), ("5000", "skipped")
    ]  # fmt: skip
    assert groups[0].worst == FAILED
    assert groups[0].timed == make_passed()
    assert groups[2].worst is groups[2].timed is None


def test_backends_are_summed_up_one_by_one() -> None:
    ours, skipped, small = summarize(FULL).backends
    assert (ours.status, ours.passed, ours.failed) == ("failed", 4, 3)
    assert ours.timed is not None
    assert ours.timed.seq_len == 1024
    assert ours.speedups == (3.0, 3.0)
    assert ours.score == 0.9823
    assert ours.footprint == FOOTPRINT
    assert [row.check for row in ours.invariances] == ["repeat", "padding"]
    assert (skipped.status, skipped.reason, skipped.is_tried) == ("skipped", "no CUDA device here", False)
    assert small.status == "passed"
    assert [one.name for one in summarize(FULL).tried] == ["ort-cpu", "trt:small"]


def test_check_of_declared_shapes_does_not_make_a_backend_skipped() -> None:
    summary = summarize(make_report(DECLARED, make_passed(backend="onnx:other")))
    (other,) = summary.backends
    assert (other.status, other.reason, other.invariances) == ("failed", None, (DECLARED,))
    assert summary.reasons[0].where == ""
