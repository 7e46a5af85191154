from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner, Result

from flash_export.cli.main import main
from tests.validators.report.builders import FAILED, FULL, make_passed, make_report

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.validators.results import ValidationReport

GOOD = make_report(make_passed(300), make_passed(512))
BAD = make_report(replace(FAILED, batch=1, masked=False), make_passed(512))


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)], prog_name="flash-export")


def write(report: ValidationReport, path: Path) -> Path:
    path.write_text(report.to_json())
    return path


def test_one_report_is_shown_again_in_every_form(tmp_path: Path) -> None:
    report = write(FULL, tmp_path / "report.json")
    result = invoke(
        report, "--html", tmp_path / "a.html", "--markdown", tmp_path / "a.md", "--junit", tmp_path / "a" / "a.xml"
    )

    assert (result.exit_code, result.stderr) == (0, f"Next: flash-export bisect {FULL.bundle}\n")
    assert "FAILED  7 passed, 3 failed, 1 skipped" in result.stdout
    assert "<!doctype html>" in (tmp_path / "a.html").read_text()
    assert (tmp_path / "a.md").read_text().startswith("## ")
    assert len(ET.parse(tmp_path / "a" / "a.xml").getroot()) == 3


def test_markdown_to_stdout_is_alone_there(tmp_path: Path) -> None:
    result = invoke(write(FULL, tmp_path / "report.json"), "--markdown", "-")
    assert result.stdout.startswith("## ")
    assert "FAILED  7 passed" not in result.stdout
    assert "FAILED  7 passed" in result.stderr


@pytest.mark.parametrize(("first", "second", "code"), [(GOOD, GOOD, 0), (GOOD, BAD, 1), (BAD, GOOD, 0), (BAD, BAD, 0)])
def test_exit_code_says_whether_the_second_is_worse(
    tmp_path: Path, first: ValidationReport, second: ValidationReport, code: int
) -> None:
    result = invoke(write(first, tmp_path / "a.json"), write(second, tmp_path / "b.json"))
    then = "bisect" if code else "validate"
    assert (result.exit_code, result.stderr) == (code, f"Next: flash-export {then} {second.bundle}\n")
    assert result.stdout.splitlines()[-1].startswith("WORSE" if code else "NO WORSE")


def test_comparison_as_markdown(tmp_path: Path) -> None:
    pair = write(GOOD, tmp_path / "a.json"), write(BAD, tmp_path / "b.json")
    result = invoke(*pair, "--markdown", tmp_path / "changes.md")
    assert result.exit_code == 1
    assert (tmp_path / "changes.md").read_text().startswith("## ❌ 1 of 2 checks in both passed before and fails now.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "cannot be read as JSON"),
        ('{"format_version": 1, "rows": []}', "has format_version 1, this version reads 3"),
        ("[]", "bad.json holds a list, not a JSON object; give the report.json of 'flash-export validate'"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    good = write(GOOD, tmp_path / "good.json")
    for arguments in ((tmp_path / "bad.json",), (good, tmp_path / "bad.json"), (tmp_path / "missing.json",)):
        result = invoke(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
    assert message in invoke(tmp_path / "bad.json").stderr


def test_checks_of_one_report_are_refused_for_two(tmp_path: Path) -> None:
    report = write(GOOD, tmp_path / "a.json")
    result = invoke(report, report, "--junit", tmp_path / "file")
    assert result.exit_code == 2
    assert "two were given; use --markdown; see 'flash-export report --help'" in result.stderr
    assert not (tmp_path / "file").exists()


def test_showing_a_report_loads_neither_pytorch_nor_onnx(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom flash_export.cli.main import main\n"
        f"main(['report', {str(write(FULL, tmp_path / 'report.json'))!r}], standalone_mode=False)\n"
        "print({'torch', 'onnx', 'onnxruntime'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "set()"
