"""Paths as nobody gives them, and a current folder that is gone: correct output, or one line and exit code 2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from flash_export.cli.main import main
from tests.cli.commands import invoke

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle

SCRIPT = Path(sys.executable).parent / "flash-export"
MARKUP = "x[/red]y [1, 2]"
# Linux takes any bytes as a name; what is no UTF-8 cannot be written on other systems.
NOT_UTF8 = os.fsdecode(b"b\xff")


def test_names_with_markup_are_shown_by_every_command(
    small_bundle: Bundle, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_bundle.path, MARKUP)
    files = {kind: f"{MARKUP}/[{kind}]" for kind in ("json", "html", "md", "xml")}
    report = f"{MARKUP}/reports/report.json"
    commands = (
        ("inspect", MARKUP),
        ("validate", MARKUP, "--seq-lens", 5, "--no-latency", "--json", files["json"], "--junit", files["xml"]),
        ("report", report, "--html", files["html"], "--markdown", files["md"]),
        ("report", report, report),
        ("profile-ranges", MARKUP, "--lengths", 16),
        ("bisect", MARKUP, "--seq-len", 9, "--html", files["html"]),
        ("compare", MARKUP, "--no-latency", "--windows", 1, "--html", files["html"]),
        ("onnx", small_checkpoint, "-o", f"{MARKUP} again", "--max-seq-len", 64),
    )
    for command in commands:
        result = invoke(*command)
        assert result.exit_code == 0, (command, result.output)
    assert f"{MARKUP}/reports/report.html" in " ".join(invoke(*commands[1]).output.split())
    assert json.loads(Path(files["json"]).read_text())["bundle"] == MARKUP
    assert MARKUP in unescape(Path(files["html"]).read_text())
    properties = ET.parse(files["xml"]).getroot().iter("property")
    assert MARKUP in {one.get("value") for one in properties}
    assert "Validation of x\\[/red\\]y \\[1, 2\\], plan" in Path(files["md"]).read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no UTF-8 exist on Linux")
def test_paths_that_are_no_utf8_are_one_line(small_bundle: Bundle, small_checkpoint: Path, tmp_path: Path) -> None:
    bundle, checkpoint = tmp_path / NOT_UTF8, tmp_path / f"{NOT_UTF8}-checkpoint"
    shutil.copytree(small_bundle.path, bundle)
    shutil.copytree(small_checkpoint, checkpoint)
    for command in (
        ("validate", bundle, "--seq-lens", 5, "--no-latency"),
        ("profile-ranges", bundle),
        ("bisect", bundle),
        ("compare", bundle),
        ("quantize", bundle, "-o", tmp_path / "new"),
        ("trt", bundle),
        ("inspect", bundle),
        ("generate", bundle, "--prompt", "x"),
        ("onnx", checkpoint, "-o", tmp_path / "new"),
        ("onnx", small_checkpoint, "-o", tmp_path / f"{NOT_UTF8}-new"),
        ("validate", small_bundle.path, "--onnx", bundle / "model.onnx"),
    ):
        result = invoke(*command)
        assert result.exit_code == 2, (command, result.output)
        (line,) = result.stderr.splitlines()
        assert "b\\xff" in line
        assert "is no UTF-8" in line
        assert line.endswith("rename it")
    assert sorted(os.listdir(os.fsencode(tmp_path))) == [b"b\xff", b"b\xff-checkpoint"]


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no UTF-8 exist on Linux")
def test_reports_are_written_to_paths_that_are_no_utf8(small_bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / NOT_UTF8
    result = invoke("validate", small_bundle.path, "--seq-lens", 5, "--no-latency", "--report", folder)
    assert result.exit_code == 0, result.output
    assert "b\\xff/report.html" in " ".join(result.output.split())
    shown = invoke("report", folder / "report.json", "--html", folder / "again.html", "--junit", folder / "junit.xml")
    assert shown.exit_code == 0, shown.output
    assert (folder / "again.html").is_file()


def test_terminal_without_unicode_gets_escapes(tmp_path: Path) -> None:
    """A report for people; what is for other programs, Markdown on stdout, is UTF-8 all the same."""
    environment = {**os.environ, "LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    row = {"backend": "ort-cpu", "graph": "forward", "batch": 1, "seq_len": 9, "masked": False, "status": "failed"}
    measure = {"name": "kl_bits", "label": "divergence", "unit": "bits per prediction", "better": "lower"}
    values: dict[str, object] = {
        "bundle": "é字",
        "environment": {},
        "rows": [{**row, "reason": "naïve"}],
        "measures": [measure],
    }
    values["format_version"] = 3
    (tmp_path / "report.json").write_text(json.dumps(values))
    result = subprocess.run(
        [SCRIPT, "report", tmp_path / "report.json", "--markdown", "-"],
        capture_output=True, check=False, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Validation of é字" in result.stdout.decode()
    assert rb"na\xefve" in result.stderr
    missing = subprocess.run([SCRIPT, "report", tmp_path / "é"], capture_output=True, check=False, env=environment)
    assert missing.returncode == 2
    assert len(missing.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", main.commands)
def test_current_folder_that_is_gone_is_one_line(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    result = invoke(command)
    assert result.exit_code == 2
    assert result.stderr == ("Error: the current folder was removed; change to one that is there, and run it again\n")
