from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from flash_export.errors import BundleError, ReportError
from flash_export.report.html import render_html
from flash_export.validators.report.files import read_report, write_report
from flash_export.validators.report.validation import describe_validation
from tests.validators.report.builders import FULL, MIXED

if TYPE_CHECKING:
    from pathlib import Path


def test_files_are_written_whole(tmp_path: Path) -> None:
    write_report(MIXED, tmp_path / "a")
    assert (tmp_path / "a" / "report.json").read_text() == MIXED.to_json()
    assert (tmp_path / "a" / "report.html").read_text() == render_html(describe_validation(MIXED))
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["report.html", "report.json"]


def test_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(BundleError, match="cannot write"):
        write_report(MIXED, tmp_path / "taken")


def test_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_report(FULL, tmp_path)
    assert read_report(tmp_path / "report.json") == FULL


def edit(**changes: Any) -> str:
    return json.dumps({**FULL.to_dict(), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as JSON (Expecting value"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "holds a list, not a JSON object; give the report.json of 'flash-export validate'"),
        ('{"a": 1}', "is no validation report"),
        ('{"format_version": true, "rows": []}', "is no validation report"),
        (edit(format_version=1), "has format_version 1, this version reads 3; validate the bundle again"),
        (edit(rows=None), "is damaged: rows is null, wanted a list"),
        (edit(rows=[{"backend": "ort-cpu"}]), "is damaged: rows[0].graph is missing"),
        (edit(rows=[{**FULL.to_dict()["rows"][0], "status": "fine"}]), "rows[0].status is 'fine', wanted passed or"),
        (edit(rows=[{**FULL.to_dict()["rows"][0], "latency_ms": {"p50": 1}}]), "rows[0].latency_ms.p90 is missing"),
        (edit(footprints=[{"backend": 1}]), "footprints[0].backend is a whole number, wanted text"),
        (
            edit(scores={**FULL.to_dict()["scores"], "values": {"a": 1.5}}),
            "scores: values.eager is missing; val",
        ),
        (edit(measures=[]), "is damaged: measures is empty"),
        (edit(surprise=1), "has the unknown field 'surprise'"),
        (edit(scores={"eager": float("nan")}), "it has the number NaN"),
    ],
)
def test_what_is_no_report_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ReportError) as caught:
        read_report(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_binary_file(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="No such file"):
        read_report(tmp_path / "nothing.json")
    (tmp_path / "image.json").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ReportError, match="cannot be read as JSON"):
        read_report(tmp_path / "image.json")


def test_fields_that_have_defaults_may_be_missing(tmp_path: Path) -> None:
    values = FULL.to_dict()
    del values["footprints"], values["diagnosis"], values["rows"][0]["latency_ms"]
    (tmp_path / "report.json").write_text(json.dumps(values))
    report = read_report(tmp_path / "report.json")
    assert not report.footprints
    assert not report.diagnosis
    assert report.rows[0].latency_ms is None
