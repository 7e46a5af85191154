"""The folder as a whole: what is in it, what is left out and why, and that it is written in one step."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from flash_export.errors import BundleError
from flash_export.files import hash_file
from flash_export.standalone.clients import CLIENTS
from flash_export.standalone.standalone import write_standalone

if TYPE_CHECKING:
    from pathlib import Path

    from tests.standalone.conftest import BundleExporter

GRAPHS = {
    "flash": ["decode.onnx", "extend.onnx", "model.onnx", "model.onnx.data", "prefill.onnx"],
    "transformer": ["decode.onnx", "model.onnx", "model.onnx.data", "prefill.onnx"],
    "forward": ["model.onnx"],
}


@pytest.mark.parametrize("name", GRAPHS)
def test_it_holds_the_graphs_and_their_weights(name: str, export_model: BundleExporter, tmp_path: Path) -> None:
    bundle = export_model(name)
    write_standalone(bundle, tmp_path / "service")
    found = sorted((tmp_path / "service" / "graphs").iterdir())
    assert [path.name for path in found] == GRAPHS[name]
    assert [hash_file(path) for path in found] == [bundle.manifest.files[path.name] for path in found]


def test_its_manifest_has_the_hash_of_every_other_file(export_model: BundleExporter, tmp_path: Path) -> None:
    made = write_standalone(export_model("flash"), tmp_path / "service")
    files = {
        path.relative_to(tmp_path / "service").as_posix(): hash_file(path)
        for path in (tmp_path / "service").rglob("*")
        if path.is_file() and path.name != "standalone.json"
    }
    assert made.files == files
    stored = json.loads((tmp_path / "service" / "standalone.json").read_text())
    assert stored["files"] == files
    assert str(tmp_path) not in json.dumps(stored)


def test_two_folders_of_a_bundle_are_the_same(export_model: BundleExporter, tmp_path: Path) -> None:
    first, second = (write_standalone(export_model("flash"), tmp_path / name) for name in "ab")
    assert first.files == second.files
    assert (tmp_path / "a" / "standalone.json").read_bytes() == (tmp_path / "b" / "standalone.json").read_bytes()


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("flash", {}),
        ("speakers", {}),
        (
            "forward",
            {"generation": "the bundle was exported without prefill, extend, decode; export it with all graphs"},
        ),
    ],
)
def test_what_is_left_out_is_told(
    name: str, left_out: dict[str, str], export_model: BundleExporter, tmp_path: Path
) -> None:
    made = write_standalone(export_model(name), tmp_path / "service")
    assert made.left_out == left_out
    assert made.clients == tuple(client.title for client in CLIENTS)
    readme = (tmp_path / "service" / "README.md").read_text()
    for what, why in left_out.items():
        assert f"- {what}: {why}.\n" in readme


def test_bf16_has_graphs_and_no_programs(export_model: BundleExporter, tmp_path: Path) -> None:
    made = write_standalone(export_model("bf16"), tmp_path / "service")
    assert made.clients == ()
    assert "onnxruntime has no bf16 kernels on a CPU" in made.left_out["Python"]
    assert list(made.files) == ["README.md", "graphs/model.onnx"]
    assert (
        f"- Python, C++, JavaScript: {made.left_out['Python']}.\n" in (tmp_path / "service" / "README.md").read_text()
    )


@pytest.mark.parametrize("name", ["flash", "transformer", "speakers", "keypoints"])
def test_the_readme_has_every_input_and_output(name: str, export_model: BundleExporter, tmp_path: Path) -> None:
    bundle = export_model(name)
    write_standalone(bundle, tmp_path / "service")
    readme = (tmp_path / "service" / "README.md").read_text()
    for graph in bundle.manifest.graphs.values():
        for spec in (*graph.inputs, *graph.outputs):
            shown = spec.name.replace(".0.", ".N.").replace(".1.", ".N.")
            shape = f"({', '.join(map(str, spec.shape))})"
            row = f"| `{shown}` | {spec.dtype} | {shape} |"
            assert (row in readme) != spec.name.startswith("new_state.")
    assert "None" not in readme


def test_it_replaces_its_own_folder_alone(export_model: BundleExporter, tmp_path: Path) -> None:
    bundle, target = export_model("forward"), tmp_path / "service"
    write_standalone(bundle, target)
    (target / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="already holds a standalone folder; add --force"):
        write_standalone(bundle, target)
    assert (target / "notes.txt").exists()
    write_standalone(bundle, target, force=True)
    assert not (target / "notes.txt").exists()


def test_it_writes_over_nothing_else(export_model: BundleExporter, tmp_path: Path) -> None:
    bundle = export_model("forward")
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    for name, message in (("file", "is a file"), ("folder", "holds other files and is no standalone folder")):
        with pytest.raises(BundleError, match=message):
            write_standalone(bundle, tmp_path / name, force=True)
    assert (tmp_path / "folder" / "notes.txt").read_text() == "mine"


def test_a_failure_leaves_the_old_folder(
    export_model: BundleExporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = write_standalone(export_model("forward"), tmp_path / "service")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flash_export.standalone.standalone.shutil.copyfile", fail)
    with pytest.raises(BundleError, match="No space left on device; free some space"):
        write_standalone(export_model("flash"), tmp_path / "service", force=True)
    assert {name: hash_file(tmp_path / "service" / name) for name in made.files} == made.files
    assert [path.name for path in tmp_path.iterdir()] == ["service"]


def test_a_bundle_that_changes_meanwhile_is_refused(
    export_model: BundleExporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy_half(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:100])

    monkeypatch.setattr("flash_export.standalone.standalone.shutil.copyfile", copy_half)
    with pytest.raises(BundleError, match="was changed while it was copied; run it again"):
        write_standalone(export_model("forward"), tmp_path / "service")
    assert not (tmp_path / "service").exists()


@pytest.mark.parametrize("name", ["input_ids): import os  #", 'x"', "lambda", "a b", ""])
def test_names_that_are_code_are_refused(name: str, export_model: BundleExporter, tmp_path: Path) -> None:
    bundle = export_model("forward")
    graph, interface = bundle.get_graph(), bundle.manifest.interface
    inputs = (replace(graph.inputs[0], name=name),)
    graphs = {"forward": replace(graph, inputs=inputs)}
    manifest = replace(bundle.manifest, graphs=graphs, interface=replace(interface, inputs=inputs))
    with pytest.raises(BundleError, match=r"has a tensor called .*, which no program is written with"):
        write_standalone(replace(bundle, manifest=manifest), tmp_path / "service")
    assert not (tmp_path / "service").exists()


def test_files_that_are_code_are_refused(export_model: BundleExporter, tmp_path: Path) -> None:
    """The manifest lets no name lead out of the bundle, but this one is a file's."""
    name, bundle = '"; import os; "', export_model("forward")
    copy = shutil.copytree(bundle.path, tmp_path / "copy")
    (copy / "model.onnx").rename(copy / name)
    files = {**bundle.manifest.files, name: bundle.manifest.files["model.onnx"]}
    manifest = replace(bundle.manifest, graphs={"forward": replace(bundle.get_graph(), file=name)}, files=files)
    with pytest.raises(BundleError, match=r"has a file called .*, which no program is written with"):
        write_standalone(replace(bundle, path=copy, manifest=manifest, stamp=None), tmp_path / "service")


def test_links_of_the_old_folder_are_not_followed(export_model: BundleExporter, tmp_path: Path) -> None:
    """What a replaced folder linked to stays as it was."""
    target, elsewhere = tmp_path / "service", tmp_path / "elsewhere"
    write_standalone(export_model("forward"), target)
    elsewhere.write_text("mine")
    (target / "README.md").unlink()
    (target / "README.md").symlink_to(elsewhere)
    write_standalone(export_model("forward"), target, force=True)
    assert elsewhere.read_text() == "mine"
    assert not (target / "README.md").is_symlink()
    shutil.rmtree(target)
