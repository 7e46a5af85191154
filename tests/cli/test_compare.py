from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from flash_export.bundle.bundle import Bundle
from flash_export.cli.main import main
from flash_export.config import ExportOptions
from flash_export.exporters.export import export_onnx
from flash_export.validators.trade_off import speed
from tests.fuzz.material import sign_bundle

if TYPE_CHECKING:
    from pathlib import Path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["compare", "--threads", "1", *map(str, arguments)])


@pytest.fixture
def copy(small_bundle: Bundle, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(small_bundle.path, tmp_path / "copy"))


def test_table_and_every_file(small_bundle: Bundle, copy: Bundle, tmp_path: Path) -> None:
    files = {kind: tmp_path / f"found.{kind}" for kind in ("json", "html", "markdown")}
    options = [part for kind, path in files.items() for part in (f"--{kind}", path)]
    result = invoke(copy.path, small_bundle.path, "--no-latency", "--windows", 1, *options)

    assert result.exit_code == 0, result.output
    assert "predictions on random tokens." in result.stdout
    values = json.loads(files["json"].read_text())
    assert [entry["name"] for entry in values["entries"]] == ["copy", "bundle"]
    assert "What 2 bundles cost and lose" in files["html"].read_text()
    assert files["markdown"].read_text().startswith("## What 2 bundles cost and lose")


def test_json_on_stdout_stands_alone(small_bundle: Bundle, copy: Bundle) -> None:
    arguments = ("--reference", small_bundle.path, "--no-latency", "--windows", 1, "--json", "-")
    result = invoke(copy.path, small_bundle.path, *arguments)

    assert [entry["name"] for entry in json.loads(result.stdout)["entries"]] == ["bundle", "copy"]
    assert "predictions on random tokens." in result.stderr


def test_causal_bundle_has_its_decode_steps_timed(
    causal_byte_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flash_export.validators.trade_off.compare.DEFAULT_BUDGET_S", 0.01)
    options = ExportOptions(max_seq_len=64, graphs=("forward",))
    export_onnx(causal_byte_bundle.path, tmp_path / "bare", options=options)
    result = invoke(causal_byte_bundle.path, tmp_path / "bare", "--windows", 1, "--json", "-")

    whole, bare = json.loads(result.stdout)["entries"]
    assert [timing["seq_len"] for timing in whole["timings"]] == [96]  # 512 is out of range
    assert whole["decode"]["latency_ms"]["runs"] >= 3
    assert whole["decode"]["ratio"]["median"] == 1
    assert bare["decode"]["reason"] == "the bundle has no decode graph"
    assert set(whole["graph_bytes"]) == {"forward", "prefill", "extend", "decode"}


def test_run_that_takes_too_long_is_not_timed(small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "MAX_RUN_S", 0.0)
    result = invoke(small_bundle.path, "--windows", 1, "--seq-len", 40)

    assert result.exit_code == 0, result.output
    assert "bundle: not timed: one run takes 0 s" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seq-len", "513"), "seq_len=513 exceeds the graph's maximum 512"),
        (("--seq-len", "one"), "write it like 1,17,300"),
        (("--batch", "0"), "batch=0 is below the graph's minimum 1"),
        (("--windows", "0"), "windows=0 is not usable"),
        (("--reference", "nowhere"), "nowhere is not a folder"),
        (("--json", "-", "--markdown", "-"), "both go to stdout; give one of them a file"),
        (("nowhere",), "nowhere is not a folder"),
    ],
)
def test_bad_option_exits_2_with_one_line(small_bundle: Bundle, arguments: tuple[str, ...], message: str) -> None:
    result = invoke(small_bundle.path, *arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_graph_that_is_damaged_is_one_line(copy: Bundle) -> None:
    path = copy.get_graph_path()
    path.write_bytes(path.read_bytes()[:-100])
    sign_bundle(copy.path)
    result = invoke(copy.path, "--no-latency", "--windows", 1)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"Error: {path} cannot be read as ONNX (")
    assert result.stderr.count("\n") == 1
