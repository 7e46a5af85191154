"""``--json`` of every command: strict, alone on stdout, with the keys that docs/json.md promises."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from click.testing import CliRunner

from flash_export.cli.main import main
from flash_export.cli.schemas import FOLDER
from flash_export.errors import BackendUnavailableError
from tests.validators.report.builders import make_passed, make_report

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle

PAGE = Path(__file__).parents[2] / "docs" / "json.md"
QUICK = ("--seq-lens", "3", "--batch", "1", "--backend", "ort-cpu", "--no-latency", "--threads", "1")


def read_promises() -> dict[str, list[str]]:
    """Return the keys of each command's JSON, as the page lists them."""
    rows = re.findall(r"^\| `([^`]+)` \|[^|]+\| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {command: re.findall(r"`(\w+)`", keys) for command, keys in rows}


def run(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
    """Run a command, quietly, and return its JSON, which has to stand alone."""
    result = CliRunner().invoke(main, [*map(str, arguments), "--json", "-", "--quiet"])
    assert (result.exit_code, result.stderr) == (code, "")
    values: dict[str, Any] = json.loads(result.stdout, parse_constant=pytest.fail)
    jsonschema.validate(values, load_schema(*map(str, arguments)))
    return values


def load_schema(command: str, *arguments: str) -> dict[str, Any]:
    name = {"onnx": "inspect", "report": "report" if len(arguments) > 1 else "validate"}.get(command, command)
    schema: dict[str, Any] = json.loads((FOLDER / f"{name}.schema.json").read_text())
    return schema


def test_every_command_is_on_the_page() -> None:
    assert {name.split()[0] for name in read_promises()} == set(main.commands)


def test_doctor() -> None:
    assert list(run("doctor")) == read_promises()["doctor"]


def test_families() -> None:
    assert list(run("families")) == read_promises()["families"]


def test_onnx_and_inspect_describe_a_bundle_alike(small_checkpoint: Path, tmp_path: Path) -> None:
    exported = run("onnx", small_checkpoint, "-o", tmp_path / "bundle", "--max-seq-len", "64")
    assert list(exported) == read_promises()["onnx"]
    assert exported == run("inspect", tmp_path / "bundle")
    assert list(exported) == read_promises()["inspect"]


def test_engine_report(bundle: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    assert list(run("engine-report", bundle.path)) == read_promises()["engine-report"]


def test_validate(bundle: Bundle) -> None:
    report = run("validate", bundle.path, *QUICK)
    assert list(report) == read_promises()["validate"]
    assert report == json.loads((bundle.path / "reports" / "report.json").read_text())


def test_report(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(make_report(make_passed(300)).to_json())
    bad.write_text(make_report(make_passed(300, status="failed", reason="wrong")).to_json())
    assert list(run("report", good)) == read_promises()["report A"]
    comparison = run("report", good, bad, code=1)
    assert list(comparison) == read_promises()["report A B"]
    assert comparison["passed"] is False
    assert comparison["before"] == {"bundle": make_report().bundle, "passed": True}
    assert [change["before"] for change in comparison["verdicts"]] == ["passed"]


def test_bisect(small_bundle: Bundle) -> None:
    found = run("bisect", small_bundle.path, "--seq-len", "5", "--batch", "1", "--threads", "1")
    assert list(found) == read_promises()["bisect"]
    assert found["clean"] is True


def test_profile_ranges(small_bundle: Bundle) -> None:
    found = run("profile-ranges", small_bundle.path, "--lengths", "16,32", "--threads", "1")
    assert list(found) == read_promises()["profile-ranges"]


def test_compare(small_bundle: Bundle, bundle: Bundle) -> None:
    found = run("compare", small_bundle.path, bundle.path, "--no-latency", "--windows", "1", "--threads", "1")
    assert list(found) == read_promises()["compare"]


def test_quantize(int8_bundle: Bundle, causal_byte_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flash_export.quantization.quantize.quantize_bundle", lambda *_, **__: int8_bundle)
    record = run("quantize", causal_byte_bundle.path, "-o", "never-written")
    assert list(record) == read_promises()["quantize"]
    assert record == json.loads((int8_bundle.path / "quantization.json").read_text())


def test_trt(bundle: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    built = run("trt", bundle.path, "--compute-capability", "8.9", "--length-range", "1:9")
    assert list(built) == read_promises()["trt"]
    (status,) = built["engines"]
    assert status["engine"] == json.loads((bundle.path / "engines" / "forward.json").read_text())
    assert built["use"]["chosen"] == 1
    checked = run("trt", bundle.path, "--check")
    assert checked == {"engines": [status], "is_from_cache": False, "use": None}


def test_generate(causal_byte_bundle: Bundle) -> None:
    written = run("generate", causal_byte_bundle.path, "--tokens", "1,2,3", "--max-tokens", "4")
    assert list(written) == read_promises()["generate"]
    assert (written["text"], written["prompt_tokens"], written["position"]) == (None, 3, 7)
    assert len(written["tokens"]) == 4


def test_standalone(small_bundle: Bundle, tmp_path: Path) -> None:
    made = run("standalone", small_bundle.path, "-o", tmp_path / "service")
    assert list(made) == read_promises()["standalone"]
    stored = json.loads((tmp_path / "service" / "standalone.json").read_text())
    assert made == {"path": str(tmp_path / "service"), **stored}


def test_triton(causal_byte_bundle: Bundle, tmp_path: Path) -> None:
    written = run("triton", causal_byte_bundle.path, "-o", tmp_path, "--name", "m")
    assert list(written) == read_promises()["triton"]
    (model,) = written["models"]
    assert (model["name"], model["form"], model["version"], model["kept"]) == ("m", "forward", 1, [])


def test_demo(small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its steps do is tested where they are; here they are quick."""

    def export(_checkpoint: str, target: str, **_: object) -> Bundle:
        shutil.copytree(small_bundle.path, target)
        return small_bundle

    def refuse(*_: object, **__: object) -> None:
        raise BackendUnavailableError("no TensorRT here")

    report = make_report(make_passed(300))
    monkeypatch.setattr("flash_export.exporters.export.export_onnx", export)
    monkeypatch.setattr("flash_export.exporters.engine.build_engine", refuse)
    monkeypatch.setattr("flash_export.validators.validate.validate_bundle", lambda *_, **__: report)
    made = run("demo", "-o", tmp_path)
    assert list(made) == read_promises()["demo"]
    assert (made["passed"], made["engine"], made["no_engine"]) == (True, None, "no TensorRT here")
    assert made["bundle"] == str(tmp_path / "byte-causal")
    assert made["report"] == json.loads(report.to_json())

    result = CliRunner().invoke(main, ["demo", "-o", str(tmp_path / "shown"), "--json", "-"])
    assert json.loads(result.stdout)["passed"] is True
    commands = [line[2:].split()[:2] for line in result.stderr.splitlines() if line.startswith("$ ")]
    assert commands == [["flash-export", "onnx"], ["flash-export", "trt"], ["flash-export", "validate"]]
    assert "\nNo engine: no TensorRT here\n" in result.stderr
    suggested = [line for line in result.stderr.splitlines() if line.startswith("Next: ")]
    assert suggested == ["Next: flash-export onnx CHECKPOINT -o BUNDLE"]


@pytest.mark.parametrize("options", [["--json", "-"], ["--json", "found.json"]])
def test_an_error_writes_no_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["inspect", "nowhere", *options])
    assert (result.exit_code, result.stdout) == (2, "")
    assert list(tmp_path.iterdir()) == []


def test_json_goes_to_a_file_and_the_text_stays(small_bundle: Bundle, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(small_bundle.path), "--json", str(tmp_path / "found.json")])
    assert result.stdout.startswith(f"bundle {small_bundle.path}\n")
    assert json.loads((tmp_path / "found.json").read_text()) == run("inspect", small_bundle.path)
