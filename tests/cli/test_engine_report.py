"""``flash-export engine-report``: what it prints and writes, and one line for whatever it cannot take."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import torch
from click.testing import CliRunner, Result

from flash_export.cli.main import main
from flash_export.cli.schemas import FOLDER
from flash_export.config import BuildOptions
from flash_export.exporters.engine import build_engine
from flash_export.install import get_install_command

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")


def report(bundle: Bundle, *options: object) -> Result:
    arguments = ["engine-report", str(bundle.path), *map(str, options)]
    return CliRunner(env={"COLUMNS": "200"}).invoke(main, arguments)


def check_refused(result: Result, *fragments: str) -> None:
    """Check exit code 2, nothing on stdout and one line on stderr with every fragment."""
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert [fragment for fragment in fragments if fragment not in result.stderr] == [], result.stderr


@pytest.fixture
def built(bundle: Bundle) -> Bundle:
    build_engine(bundle, options=BuildOptions(compute_capabilities=("8.9",), profiles=("1x1:2x32:4x64",)))
    return bundle


def test_engine_is_summed_up(built: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = report(built, "--html", tmp_path / "page.html", "--markdown", tmp_path / "page.md")
    assert result.exit_code == 0, result.output
    (engine,) = built.list_engines()
    lines = result.stdout.splitlines()
    assert lines[0] == f"Engine forward of {built.path}"
    assert f"  built     tensorrt-rtx {engine.version} for 8.9" in lines
    assert "  profile 0 1x1:2x32:4x64" in lines
    (total,) = {line.split()[1] for line in lines if line.startswith("all ")} & {str(engine.num_layers)}
    assert f"Layers: {total}, " in result.stdout
    assert (
        "skipped layers of the engine: fusions and kernels were not read: no CUDA device here; engine 'forward' needs "
        "an NVIDIA GPU and a CUDA build of PyTorch"
    ) in lines
    assert result.stderr == f"Next: flash-export validate {built.path} --backend trt:forward\n"
    assert "Layers by part of the model" in (tmp_path / "page.html").read_text()
    assert "### Layers by part of the model" in (tmp_path / "page.md").read_text()


def test_json_stands_alone_and_follows_its_schema(built: Bundle) -> None:
    result = report(built, "--json", "-", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    values: dict[str, Any] = json.loads(result.stdout, parse_constant=pytest.fail)
    jsonschema.validate(values, json.loads((FOLDER / "engine-report.schema.json").read_text()))
    (engine,) = built.list_engines()
    assert len(values["layers"]) == values["engine"]["num_layers"] == engine.num_layers
    assert [point["sizes"] for point in values["points"]] == [
        {"batch": batch, "seq": seq} for batch, seq in ((1, 1), (2, 32), (4, 64))
    ]


def test_bundle_without_an_engine_has_its_graph_reported(bundle: Bundle) -> None:
    result = report(bundle)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"Graph forward of {bundle.path}\n")
    assert ", which an engine would have by default" in result.stdout
    assert result.stderr == f"Next: flash-export trt {bundle.path}\n"


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (("--engine", "forwrd"), ("has no engine 'forwrd'; it has forward (did you mean forward?)",)),
        (("--graph", "decode"), ("has no graph 'decode'; it has forward",)),
        (("--graph", "forward", "--engine", "forward"), ("both given; name one of them",)),
        (("--html", "-", "--json", "-"), ("both go to stdout",)),
    ],
)
def test_what_cannot_be_meant_is_one_line(built: Bundle, options: tuple[str, ...], fragments: tuple[str, ...]) -> None:
    check_refused(report(built, *options), *fragments)


def test_several_engines_have_to_be_told_apart(built: Bundle) -> None:
    build_engine(built, options=BuildOptions(name="ada", compute_capabilities=("8.9",)))
    check_refused(report(built), "has 2 engines; name one of ada, forward with --engine")
    assert report(built, "--engine", "ada").exit_code == 0


def test_changed_engine_is_refused(built: Bundle) -> None:
    (built.path / "engines" / "forward.engine").write_bytes(b"other")
    check_refused(report(built), "was changed after the build; build it again: flash-export trt")


def test_missing_tensorrt_is_named_with_its_cure(built: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    check_refused(report(built), "TensorRT-RTX is not installed", get_install_command("rtx"))


def test_no_bundle_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["engine-report", str(tmp_path)])
    check_refused(result, "is not a bundle")
