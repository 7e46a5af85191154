from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from flash_export.report.markdown import escape
from flash_export.report.markdown import render_markdown as render_document
from flash_export.validators.report.validation import describe_validation
from tests.validators.report.builders import FAILED, FULL, MIXED, QUANTIZED, SKIPPED, make_passed, make_report

if TYPE_CHECKING:
    from flash_export.validators.results import ValidationReport


def render_markdown(report: ValidationReport) -> str:
    return render_document(describe_validation(report))


def test_summary_begins_with_the_verdict_and_the_diagnosis() -> None:
    lines = render_markdown(FULL).splitlines()
    assert lines[0] == "## ❌ ort-cpu does not give the same answers as the original."
    assert lines[2].startswith("Validation of bundle, plan quick: **7 passed, 3 failed, 1 skipped**. The original")
    assert lines[4] == "> **ort-cpu: it is right without padding and wrong with it**"
    assert render_markdown(make_report(make_passed())).startswith("## ✅ The exported model gives the same answers")
    assert render_markdown(make_report(SKIPPED)).startswith("## ⚪ Nothing was checked")


def test_backend_is_a_row_with_error_speed_and_bits() -> None:
    line = next(line for line in render_markdown(FULL).splitlines() if line.startswith("| trt:small |"))
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "trt:small", "✅ passed", "3 passed", "1 of 1", "1.0e-06", "2.5x", "16%", "100%", "0.9824",
        "600", "2 ms", "300,000", "3.0x",
    ]  # fmt: skip


def test_failures_are_listed_and_cut_short() -> None:
    text = render_markdown(make_report(*(replace(FAILED, seq_len=300 + index) for index in range(25))))
    assert "| ort-cpu | accuracy | batch 3, length 300, masked | max abs error 0.5 exceeds it |" in text
    assert "length 319" in text
    assert "length 320" not in text
    assert "and 5 more" in text


def test_what_was_skipped_has_its_reason() -> None:
    assert "- ⚪ trt:big skipped: no CUDA device here" in render_markdown(MIXED)


def test_folded_parts_are_there_when_there_is_something_in_them() -> None:
    full, mixed = render_markdown(FULL), render_markdown(MIXED)
    assert (
        "| The same input twice must give the same bits | ✅ holds to the bit | ✅ holds to the bit | repeat |" in full
    )
    assert "| ort-cpu | 85 ms | 24 MiB | 12 ms | 6 ms | 182 MiB | 4096 |" in full
    assert "| chunk size | 128 |" in full
    assert full.count("<details>") == full.count("</details>") == 3
    assert mixed.count("<details>") == 1


def test_tables_are_tables() -> None:
    """A blank line before it, and the same number of cells in every line, or GitHub shows bars."""
    for report in (FULL, MIXED, make_report()):
        lines = render_markdown(report).splitlines()
        for index, line in enumerate(lines):
            if re.match(r"\|(-|:)", line):
                assert lines[index - 2] == ""
                cells = [len(re.findall(r"(?<!\\)\|", one)) for one in lines[index - 1 :]]
                width = cells[0]
                assert all(count == width for count in cells[: next((i for i, c in enumerate(cells) if not c), None)])


def test_reason_cannot_break_out_of_its_cell() -> None:
    text = escape("a | b\n`c` <script> *d* @someone #1")
    assert text == "a \\| b \\`c\\` &lt;script&gt; \\*d\\* \\@someone \\#1"


def test_quantized_bundle_has_its_own_words_and_columns() -> None:
    text = render_markdown(QUANTIZED)
    assert text.startswith("## ✅ The int8 model loses no more than it may: 0.34% more bits per byte, 0.50% is acc")
    assert "PyTorch has 0.9823 on the same held-out data; +0.50% is accepted" in text
    assert "| Error | Of limit | Same top token, held-out | Bits per byte |" in text
    assert "| 3.0e-01 | 60% | 97.6% | 0.9856 |" in text
    assert "PyTorch's own" not in text
    assert text.count("no CUDA device here") == 1
    assert "- ⚪ ort-cuda and stream:ort-cuda skipped: no CUDA device here" in text
