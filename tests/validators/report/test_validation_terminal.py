from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from flash_export.formatting import format_factor, format_percent
from flash_export.report.terminal import print_document
from flash_export.validators.report.rows import format_shape, format_share
from flash_export.validators.report.validation import describe_validation
from tests.validators.report.builders import (
    CRASHED,
    FAILED,
    FULL,
    MIXED,
    QUANTIZED,
    SKIPPED,
    make_invariance,
    make_latency,
    make_passed,
    make_report,
)

if TYPE_CHECKING:
    from flash_export.validators.results import Row, ValidationReport


def show(report: ValidationReport, width: int = 200) -> list[str]:
    stream = io.StringIO()
    print_document(describe_validation(report), Console(file=stream, width=width))
    return stream.getvalue().splitlines()


def test_what_was_skipped_is_counted_and_explained() -> None:
    lines = show(MIXED)
    assert lines[-1] == "FAILED  3 passed, 2 failed, 1 skipped"
    assert "skipped trt:big: no CUDA device here" in lines
    assert "failed ort-cpu: max abs error 0.5 exceeds it (batch 3, length 300, masked)" in lines


def test_length_has_error_multiple_share_and_speed() -> None:
    line = next(line for line in show(MIXED) if line.startswith("ort-cpu 1024"))
    assert line.split() == [
        "ort-cpu", "1024", "passed", "1", "passed", "1.0e-06", "2.5x", "16%", "100%",
        "1024", "2", "ms", "512,000", "3.0x",
    ]  # fmt: skip


def test_without_times_there_are_no_columns_for_them() -> None:
    headings = [line.split() for line in show(make_report(make_passed(9, masked=True))) if "Result" in line]
    assert [heading[-3:] for heading in headings] == [["Same", "top", "token"]] * 2


def test_many_rows_are_shown_by_groups_of_lengths() -> None:
    rows = [make_passed(length) for length in range(128, 256)]
    lines = show(make_report(*rows, make_passed(4096)))
    assert len(lines) < 25
    assert any(line.split()[:4] == ["ort-cpu", "129-255", "passed", "127"] for line in lines)
    assert any(line.split()[:4] == ["ort-cpu", "4096", "passed", "1"] for line in lines)


def test_costs_of_a_fresh_process_are_a_table() -> None:
    lines = [" ".join(line.split()) for line in show(FULL)]
    assert "ort-cpu 85 ms 24 MiB 12 ms 6 ms 182 MiB 4096" in lines
    assert "trt:small: not measured: it took more than 600 s" in lines


def test_facts_stand_above_the_verdict() -> None:
    compiled = make_latency(4.0)
    report = make_report(
        make_passed(4096, compiled_latency_ms=compiled), bits={"eager": 0.9823, "ort-cpu": 0.9824}
    )  # fmt: skip
    assert show(report)[-6:] == [
        "Largest error: 16% of the limit, 2.5x PyTorch's own error in fp32, 1.0e-06 of the largest output, at batch 1, "
        "length 4096",
        "Same top token: 100%, in the worst check; divergence 1e-09 bits per prediction",
        "Bits per byte, ort-cpu: 0.9824, PyTorch has 0.9823 on the same held-out data",
        "Speed at 4,096 tokens: 3.0x PyTorch's, ort-cpu takes 2 ms (1.9 to 2.1 ms), 2,050,000 tokens/s; torch.compile "
        "takes 4 ms; 3.0x to 3.0x over all shapes",
        "The exported model gives the same answers as the original.",
        "PASSED  1 passed, 0 failed, 0 skipped",
    ]


def test_reasons_that_differ_in_numbers_alone_are_one_with_the_worst_row() -> None:
    failures = [
        replace(FAILED, seq_len=300 + index, max_abs_error=float(index + 1), reason=f"error {index}.5e-03 exceeds")
        for index in range(20)
    ]
    first, second, third = describe_validation(make_report(make_passed(), *failures, CRASHED, SKIPPED)).notes

    assert (first.text, first.where) == ("error 19.5e-03 exceeds", "batch 3, length 319, masked, and 19 like it")
    assert (second.text, second.where) == (CRASHED.reason, "batch 1, length 301")
    assert (third.style, third.where) == ("skipped", "")


def test_many_reasons_are_cut_short_but_counted() -> None:
    failures = [replace(FAILED, reason=f"error {chr(ord('a') + index)}") for index in range(20)]
    notes = [note.text for note in describe_validation(make_report(make_passed(), *failures, SKIPPED)).notes]
    assert notes == [*(f"error {name}" for name in "abcdef"), SKIPPED.reason, "and 14 more reasons"]


def test_a_skip_of_several_backends_for_one_reason_is_told_once() -> None:
    (note,) = describe_validation(QUANTIZED).notes
    assert (note.who, note.text, note.where) == ("ort-cuda and stream:ort-cuda", SKIPPED.reason, "")


def test_every_backend_that_was_not_tried_has_its_reason() -> None:
    engines = [replace(SKIPPED, backend=f"trt:{name}", reason=f"engine {name} needs a GPU") for name in "abcdefghij"]
    notes = describe_validation(make_report(make_passed(), *engines)).notes
    assert [note.who for note in notes] == [engine.backend for engine in engines]


def test_the_dearest_backend_is_named() -> None:
    bits = {"eager": 1.0, "ort-cpu": 0.9, "trt:small": 1.02}
    facts = describe_validation(make_report(make_passed(), make_passed(backend="trt:small"), bits=bits)).facts
    assert ("Bits per byte, trt:small", "1.0200") in {(fact.label, fact.value) for fact in facts}


def test_speed_that_may_be_chance_is_told_as_such() -> None:
    lines = show(make_report(make_passed(9, eager_latency_ms=make_latency(2.05), speedup=1.025)))
    assert any(line.startswith("Speed at 9 tokens: ") and "intervals of both overlap" in line for line in lines)


def test_diagnosis_is_right_above_the_verdict() -> None:
    assert show(FULL)[-3] == "ort-cpu: it is right without padding and wrong with it"


@pytest.mark.parametrize("count", [1, 50])
def test_tables_fit_80_columns(count: int) -> None:
    slow: dict[str, Any] = {
        "latency_ms": make_latency(0.1234),
        "eager_latency_ms": make_latency(0.4321),
        "speedup": 0.123,
    }
    special: tuple[dict[str, Any], ...] = ({"masked": True}, {"inputs": "recorded"})
    rows = [make_passed(65536, backend="trt:forward", batch=64, **one, **slow) for one in special] * count
    wrong = make_passed(65535, status="failed", reason="no", max_abs_error=1e30, noise=1e-12, max_rel_error=1e30)
    lines = show(make_report(*rows, wrong, make_invariance("repeat")), width=80)

    table = [line for line in lines if line.startswith(("Backend", "ort-cpu ", "trt:forward"))]
    assert len(table) >= 6
    assert all(len(line) <= 80 for line in table)
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize(("rows", "word"), [((make_passed(),), "PASSED"), ((SKIPPED,), "NOT VALIDATED"), ((), "NOT")])
def test_last_line_is_the_verdict(rows: tuple[Row, ...], word: str) -> None:
    assert show(make_report(*rows))[-1].startswith(word)


def test_quantized_bundle_is_told_by_what_it_loses_and_not_by_an_error_that_is_no_one_s() -> None:
    lines = show(QUANTIZED)
    assert lines[-7:] == [
        "skipped ort-cuda and stream:ort-cuda: no CUDA device here",
        "Bits per byte, ort-cpu: +0.34%, 0.9856, 0.34% more bits per byte; PyTorch has 0.9823 on the same held-out "
        "data; +0.50% is accepted",
        "Largest error: 60% of the limit, 3.0e-01 of the largest output, at batch 1, length 389, masked",
        "Same top token: 97.6%, of held-out data, in the worst check; divergence 0.008 bits per prediction; 50% of "
        "random inputs",
        "Speed at 515 tokens: 3.0x PyTorch's, ort-cpu takes 2 ms (1.9 to 2.1 ms), 258,000 tokens/s; 3.0x to 3.0x over "
        "all shapes",
        "The int8 model loses no more than it may: 0.34% more bits per byte, 0.50% is accepted.",
        "PASSED  4 passed, 0 failed, 2 skipped",
    ]
    assert not any("Multiple" in line or "PyTorch's own" in line for line in lines)


@pytest.mark.parametrize("report", [FULL, MIXED, QUANTIZED, make_report(make_passed(9), make_passed(1024, noise=1e-9))])
def test_largest_error_is_the_largest_of_the_table(report: ValidationReport) -> None:
    """The same rows, in the same unit."""
    lines = show(report)
    (fact,) = (line for line in lines if line.startswith("Largest error: "))
    compared = [row for row in report.rows if row.check == "accuracy" and row.max_abs_error and row.tolerance]
    shares = {index: (row.max_abs_error or 0) / (row.tolerance or 1) for index, row in enumerate(compared)}
    worst = max(shares, key=lambda index: shares[index])
    row, share = compared[worst], shares[worst]
    assert fact.startswith(f"Largest error: {format_share(row)}, ")
    assert fact.endswith(f"at {format_shape(row)}")
    shown = f"{format_factor(share)}x" if share >= 2 else format_percent(share)
    assert any(shown in line.split() for line in lines if line.startswith(f"{row.backend} "))
