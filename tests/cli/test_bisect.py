from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from flash_export.cli.main import main
from flash_export.files import hash_file, write_file

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle


def invoke(bundle: Bundle, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["bisect", str(bundle.path), "--threads", "1", *arguments])


def sign(bundle: Bundle, files: dict[str, str]) -> None:
    manifest = dataclasses.replace(bundle.manifest, files=files)
    write_file(bundle.path / "manifest.json", manifest.to_json().encode())


def spoil_weight(bundle: Bundle) -> None:
    path = bundle.get_graph_path()
    model = onnx.load(path)
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "layers.1.out_weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.5, weight.name))
    onnx.save(model, path)
    sign(bundle, {**bundle.manifest.files, path.name: hash_file(path)})


def test_good_bundle_exits_0_and_is_as_it_was(bundle: Bundle) -> None:
    before = {path.name: path.read_bytes() for path in bundle.path.iterdir()}
    result = invoke(bundle)

    assert result.exit_code == 0, result.output
    assert "CLEAN  No fault found" in result.stdout
    assert {path.name: path.read_bytes() for path in bundle.path.iterdir()} == before


def test_fault_exits_1_and_is_written_where_asked(bundle: Bundle, tmp_path: Path) -> None:
    spoil_weight(bundle)
    result = invoke(bundle, "--json", str(tmp_path / "found.json"), "--html", str(tmp_path / "found.html"))

    assert result.exit_code == 1
    assert "FOUND  Block 1, output of the block" in result.stdout
    values = json.loads((tmp_path / "found.json").read_text())
    assert values["clean"] is False
    assert values["finding"].startswith("Block 1, output of the block")
    assert "is wrong first" in (tmp_path / "found.html").read_text()


def test_json_on_stdout_stands_alone(bundle: Bundle) -> None:
    result = invoke(bundle, "--seq-len", "5", "--batch", "1", "--json", "-")

    assert json.loads(result.stdout)["clean"] is True
    assert "CLEAN" in result.stderr


def test_another_bundle_is_the_reference(bundle: Bundle, small_bundle: Bundle) -> None:
    spoil_weight(bundle)
    result = invoke(bundle, "--against", str(small_bundle.path), "--seq-len", "20")

    assert result.exit_code == 1
    assert "Block 1, output of the block" in result.stdout


def test_bundle_of_an_older_version_exits_2(bundle: Bundle) -> None:
    sign(bundle, {name: digest for name, digest in bundle.manifest.files.items() if name != "probes.json"})
    (bundle.path / "probes.json").unlink()
    result = invoke(bundle)

    assert result.exit_code == 2
    assert "older version exported it; export it again" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "trt:forward"), "an engine shows its outputs alone"),
        (("--backend", "nonsense"), "unknown backend 'nonsense'; use one of ort-cpu, ort-cuda"),
        (("--seq-len", "513"), "seq_len=513 exceeds the graph's maximum 512"),
        (("--batch", "0"), "batch=0 is below the graph's minimum 1"),
        (("--against", "nowhere"), "nowhere is not a folder"),
    ],
)
def test_bad_option_exits_2_with_one_line(bundle: Bundle, arguments: tuple[str, ...], message: str) -> None:
    result = invoke(bundle, *arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
