from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import numpy_helper

from flash_export.bundle.bundle import Bundle
from flash_export.cli.main import main
from flash_export.config import ExportOptions
from flash_export.exporters.export import export_onnx
from flash_export.files import hash_file, write_file
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.validators.accuracy import AccuracyResult, compare_outputs

if TYPE_CHECKING:
    from pathlib import Path

QUICK = ("--seq-lens", "1,7,9", "--batch", "2", "--threads", "1", "--backend", "ort-cpu", "--no-latency")


@pytest.fixture(scope="module")
def pristine_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("pristine")
    torch.manual_seed(0)
    config = FlashConfig(vocab_size=11, dim=16, depth=1, hidden_dim=32, chunk_size=8, qk_dim=8)
    FlashModel(config).eval().save_pretrained(folder / "checkpoint")
    return export_onnx(folder / "checkpoint", folder / "bundle", options=ExportOptions(max_seq_len=64, max_batch=4))


@pytest.fixture
def bundle(pristine_bundle: Bundle, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(pristine_bundle.path, tmp_path / "bundle"))


def invoke(bundle: Bundle, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["validate", str(bundle.path), *arguments])


def spoil_weight(bundle: Bundle) -> None:
    path = bundle.get_graph_path()
    model = onnx.load(path)
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "head.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.01, "head.weight"))
    onnx.save(model, path)
    files = {**bundle.manifest.files, path.name: hash_file(path)}
    manifest = dataclasses.replace(bundle.manifest, files=files)
    write_file(bundle.path / "manifest.json", manifest.to_json().encode())


def test_good_bundle_exits_0_and_leaves_two_reports(bundle: Bundle) -> None:
    result = invoke(bundle, *QUICK)

    assert result.exit_code == 0, result.output
    assert "PASSED  6 passed, 0 failed, 0 skipped" in result.stdout
    assert sorted(path.name for path in (bundle.path / "reports").iterdir()) == ["report.html", "report.json"]
    assert json.loads((bundle.path / "reports" / "report.json").read_text())["passed"] is True


def test_further_forms_are_written_where_they_are_wanted(bundle: Bundle, tmp_path: Path) -> None:
    result = invoke(bundle, *QUICK, "--junit", str(tmp_path / "ci" / "junit.xml"), "--markdown", "-")

    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("## ✅ The exported model gives the same answers as the original.")
    assert "PASSED  6 passed, 0 failed, 0 skipped" in result.stderr
    suites = ET.parse(tmp_path / "ci" / "junit.xml").getroot()
    assert [(suite.get("name"), suite.get("tests")) for suite in suites] == [("ort-cpu", "6")]

    result = invoke(bundle, *QUICK, "--markdown", str(tmp_path / "summary.md"), "--json", "-")
    assert (tmp_path / "summary.md").read_text().startswith("## ✅")
    assert json.loads(result.stdout)["passed"] is True


def test_two_forms_cannot_both_go_to_stdout(bundle: Bundle) -> None:
    result = invoke(bundle, "--markdown", "-", "--json", "-")
    assert result.exit_code == 2
    assert "give one of them a file" in result.stderr
    assert not (bundle.path / "reports").exists()


def test_footprints_are_measured_with_the_latency_and_taken_over(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    timed = ("--seq-lens", "9,20", "--batch", "1", "--threads", "1", "--backend", "ort-cpu")
    with monkeypatch.context() as patch:
        patch.setattr("flash_export.validators.validate.measure_footprint", interrupt)
        assert invoke(bundle, *timed).exit_code == 130
    assert invoke(bundle, *timed, "--resume").exit_code == 0
    report = json.loads((bundle.path / "reports" / "report.json").read_text())
    (footprint,) = report["footprints"]
    assert [shape["seq_len"] for shape in footprint["shapes"]] == [9, 20]
    assert footprint["first_call_ms"] > 0
    assert invoke(bundle, *QUICK).exit_code == 0
    assert json.loads((bundle.path / "reports" / "report.json").read_text())["footprints"] == []


def test_default_run_reports_the_missing_gpu_as_skipped(bundle: Bundle) -> None:
    result = invoke(bundle, "--max-seq-len", "4", "--threads", "1", "--batch", "1", "--batch", "3")

    assert result.exit_code == 0, result.output
    rows = json.loads((bundle.path / "reports" / "report.json").read_text())["rows"]
    compared = [row for row in rows if row["backend"] == "ort-cpu" and row["check"] == "accuracy"]
    assert {row["seq_len"] for row in compared} == {1, 2, 4}
    assert {row["batch"] for row in compared} == {1, 3}
    if not torch.cuda.is_available():
        assert [row["status"] for row in rows if row["backend"] == "ort-cuda"] == ["skipped"]


def test_changed_weight_exits_1(bundle: Bundle) -> None:
    spoil_weight(bundle)
    result = invoke(bundle, *QUICK)

    assert result.exit_code == 1
    assert "FAILED  0 passed, 6 failed" in result.stdout
    assert "exceeds the tolerance" in result.stdout
    assert invoke(bundle, *QUICK, "--rtol", "0.5").exit_code == 0
    assert invoke(bundle, *QUICK, "--rtol", "0", "--atol", "1e-9").exit_code == 1


def test_changed_file_exits_2(bundle: Bundle) -> None:
    path = bundle.get_graph_path()
    path.write_bytes(path.read_bytes() + b" ")
    result = invoke(bundle, *QUICK)

    assert result.exit_code == 2
    assert "was changed after the export" in result.stderr


def test_only_skipped_exits_1(bundle: Bundle) -> None:
    result = invoke(bundle, "--seq-lens", "4", "--backend", "trt")

    assert result.exit_code == 1
    assert "NOT VALIDATED  0 passed, 0 failed, 1 skipped" in result.stdout
    assert result.stderr.endswith("Next: flash-export doctor\n")  # nothing failed that bisect could find


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seq-lens", "0"), "seq_len=0 is below the graph's minimum 1; use 1 or more"),
        (("--seq-lens", "4,65"), "seq_len=65 exceeds the graph's maximum 64"),
        (("--max-seq-len", "65"), "seq_len=65 exceeds the graph's maximum 64"),
        (("--batch", "0"), "batch=0 is below the graph's minimum 1"),
        (
            ("--backend", "ort-gpu"),
            "unknown backend 'ort-gpu'; use one of ort-cpu, ort-cuda, ort-tensorrt, ort-tensorrt-rtx, openvino, trt",
        ),
        (("--threads", "0"), "threads=0 is not usable"),
        (("--rtol", "-1"), "rtol=-1.0 is not usable"),
        (("--rtol", "nan"), "rtol=nan is not usable"),
    ],
)
def test_bad_option_exits_2_with_one_line(bundle: Bundle, arguments: tuple[str, ...], message: str) -> None:
    result = invoke(bundle, *arguments)

    assert result.exit_code == 2
    assert message in result.stderr
    assert [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (bundle.path / "reports").exists()


def test_list_that_is_no_list_is_a_usage_error(bundle: Bundle) -> None:
    result = invoke(bundle, "--seq-lens", "1,two")

    assert result.exit_code == 2
    assert "write it like 1,17,300" in result.stderr


def test_folder_that_is_no_bundle_exits_2(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["validate", str(tmp_path)])

    assert result.exit_code == 2
    assert "is not a bundle" in result.stderr


def test_json_on_stdout_stands_alone(bundle: Bundle, tmp_path: Path) -> None:
    result = invoke(bundle, *QUICK, "--json", "-", "--report", str(tmp_path / "elsewhere"))

    assert json.loads(result.stdout)["passed"] is True
    assert "PASSED" in result.stderr
    assert (tmp_path / "elsewhere" / "report.html").is_file()
    assert not (bundle.path / "reports").exists()


def test_json_is_copied_to_a_file(bundle: Bundle, tmp_path: Path) -> None:
    invoke(bundle, *QUICK, "--json", str(tmp_path / "out.json"))

    assert (tmp_path / "out.json").read_text() == (bundle.path / "reports" / "report.json").read_text()


def test_interrupt_leaves_the_journal_alone_and_resume_goes_on(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def interrupt(*arguments: Any, **options: Any) -> AccuracyResult:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return compare_outputs(*arguments, **options)

    monkeypatch.setattr("flash_export.validators.shape_checks.compare_outputs", interrupt)
    result = invoke(bundle, *QUICK)
    reports = bundle.path / "reports"

    assert result.exit_code == 130
    assert [path.name for path in reports.iterdir()] == [".validation.jsonl"]

    calls = 10
    assert invoke(bundle, *QUICK, "--resume").exit_code == 0
    assert calls == 14  # two of the six cells were done before
    assert sorted(path.name for path in reports.iterdir()) == ["report.html", "report.json"]
    resumed = json.loads((reports / "report.json").read_text())
    assert invoke(bundle, *QUICK).exit_code == 0
    assert resumed["rows"] == json.loads((reports / "report.json").read_text())["rows"]


def test_interrupt_says_how_to_go_on(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flash_export.validators.shape_checks.compare_outputs", interrupt)
    command = f"flash-export validate {bundle.path} {' '.join(QUICK)} --resume"
    first = invoke(bundle, *QUICK)
    assert (first.exit_code, first.stderr) == (130, f"Interrupted. Go on with: {command}\n")
    assert invoke(bundle, *QUICK, "--resume").stderr == f"Interrupted. Go on with: {command}\n"
    assert invoke(bundle, *QUICK, "-q").stderr.startswith("Interrupted. Go on with: flash-export validate ")


def test_interrupt_before_anything_was_done_names_no_way_on(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flash_export.validators.validate.validate_bundle", interrupt)
    assert invoke(bundle, *QUICK).stderr == "Interrupted.\n"


def test_what_comes_next_depends_on_the_verdict(bundle: Bundle) -> None:
    assert invoke(bundle, *QUICK).stderr == f"Next: flash-export trt {bundle.path}\n"
    spoil_weight(bundle)
    assert invoke(Bundle.open(bundle.path), *QUICK).stderr == f"Next: flash-export bisect {bundle.path}\n"


def test_journal_of_other_options_is_not_resumed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flash_export.validators.shape_checks.compare_outputs", interrupt)
    assert invoke(bundle, *QUICK).exit_code == 130
    result = invoke(bundle, *QUICK, "--rtol", "0.5", "--resume")

    assert result.exit_code == 2
    assert "leave --resume out to start anew" in result.stderr


def test_interrupt_while_writing_leaves_the_old_report(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    invoke(bundle, *QUICK)
    reports = bundle.path / "reports"
    before = {path.name: path.read_bytes() for path in reports.iterdir()}

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flash_export.files.os.fsync", interrupt)
    assert invoke(bundle, *QUICK).exit_code == 130
    assert {path.name: path.read_bytes() for path in reports.iterdir()} == before


def test_help_has_examples_and_needs_no_heavy_import() -> None:
    assert "flash-export validate BUNDLE --seq-lens 1,17,300" in CliRunner().invoke(main, ["validate", "--help"]).output
    code = "import sys, flash_export.cli.validate; print({'torch', 'numpy', 'rich'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
