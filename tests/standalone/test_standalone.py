"""The folder as a whole: what is in it, what is left out and why, and that it is written in one step."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from flash_export.errors import BundleError
from flash_export.files import hash_file
from flash_export.standalone.clients import CLIENTS, TENSORRT, TENSORRT_GENERATION
from flash_export.standalone.standalone import write_standalone

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle
    from tests.standalone.conftest import BundleExporter, EngineBuilder

GRAPHS = {
    "flash": ["decode.onnx", "extend.onnx", "model.onnx", "model.onnx.data", "prefill.onnx"],
    "transformer": ["decode.onnx", "model.onnx", "model.onnx.data", "prefill.onnx"],
    "forward": ["model.onnx"],
}


NO_ENGINE = "the bundle has no engine of forward; build it with 'flash-export trt BUNDLE' first"
ALL_ENGINES = "of all of prefill, extend, decode by one version of TensorRT for one GPU"
BUILD_EACH = "build each with 'flash-export trt BUNDLE --graph NAME' first"


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
        ("flash", {TENSORRT.title: f"the bundle has no engine of forward, nor {ALL_ENGINES}; {BUILD_EACH}"}),
        ("speakers", {TENSORRT.title: NO_ENGINE}),
        (
            "forward",
            {
                "generation": "the bundle was exported without prefill, extend, decode; export it with all graphs",
                TENSORRT.title: NO_ENGINE,
            },
        ),
    ],
)
def test_what_is_left_out_is_told(
    name: str, left_out: dict[str, str], export_model: BundleExporter, tmp_path: Path
) -> None:
    made = write_standalone(export_model(name), tmp_path / "service")
    assert made.left_out == left_out
    assert made.clients == tuple(client.title for client in CLIENTS if client != TENSORRT)
    assert not any(file.startswith(("engines/", "cpp-tensorrt/")) for file in made.files)
    readme = (tmp_path / "service" / "README.md").read_text()
    for what, why in left_out.items():
        assert f"- {what}: {why}.\n" in readme


def test_engines_are_copied_with_a_program_for_tensorrt(
    export_model: BundleExporter, build_engines: EngineBuilder, tmp_path: Path
) -> None:
    bundle = build_engines(export_model("flash"), "forward", "prefill", "extend", "decode")
    made = write_standalone(bundle, tmp_path / "service")
    assert (made.clients, made.left_out) == (tuple(client.title for client in CLIENTS), {})
    engines = {engine.graph: engine for engine in bundle.list_engines()}
    assert {name: sha256 for name, sha256 in made.files.items() if name.startswith("engines/")} == {
        f"engines/{name}.engine": engines[name].engine_sha256 for name in ("decode", "extend", "prefill")
    }
    readme = (tmp_path / "service" / "README.md").read_text()
    assert f"`engines/` holds what TensorRT-RTX {engines['decode'].version} built" in readme
    assert "compute capability 8.9:" in readme
    assert "It was not run on a GPU." in readme


def test_engines_of_the_whole_pass_alone_do_not_generate(
    export_model: BundleExporter, build_engines: EngineBuilder, tmp_path: Path
) -> None:
    bundle = build_engines(export_model("flash"), "forward", "decode")
    made = write_standalone(bundle, tmp_path / "service")
    assert made.left_out == {TENSORRT_GENERATION: f"the bundle has no engines {ALL_ENGINES}; {BUILD_EACH}"}
    assert [name for name in made.files if name.startswith("engines/")] == ["engines/forward.engine"]
    assert "build/flash_model ../engines input_ids.raw logits.raw" in (tmp_path / "service" / "README.md").read_text()


def test_bf16_runs_on_engines_alone(export_model: BundleExporter, build_engines: EngineBuilder, tmp_path: Path) -> None:
    made = write_standalone(build_engines(export_model("bf16"), "forward"), tmp_path / "service")
    assert made.clients == (TENSORRT.title,)
    assert "Half precision on a CPU" not in (tmp_path / "service" / "README.md").read_text()


def test_it_takes_the_last_engine_by_name(
    export_model: BundleExporter, build_engines: EngineBuilder, tmp_path: Path
) -> None:
    bundle = build_engines(export_model("forward"), "forward")
    made = write_standalone(build_engines(bundle, "forward", name="wide"), tmp_path / "service")
    assert [name for name in made.files if name.startswith("engines/")] == ["engines/wide.engine"]


@pytest.mark.parametrize("change", [{"version": "1.7.2"}, {"targets": ("12.0",)}])
def test_engines_that_do_not_run_together_are_not_taken(
    change: dict[str, Any], export_model: BundleExporter, build_engines: EngineBuilder, tmp_path: Path
) -> None:
    bundle = build_engines(export_model("transformer"), "prefill", "decode")
    _change_engine(bundle, "decode", **change)
    made = write_standalone(bundle, tmp_path / "service")
    assert made.left_out == {
        TENSORRT.title: "the bundle has no engine of forward, nor of all of prefill, decode by one version of TensorRT "
        f"for one GPU; {BUILD_EACH}"
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": '1.7"; system("x'}, "has a version of an engine called .*, which no program is written with"),
        ({"targets": ('8.9"',)}, "has a target of an engine called .*, which no program is written with"),
        ({"engine_sha256": "0" * 64}, "was changed after the build; never run it, build the engine again"),
        ({"graph_sha256": "0" * 64}, "was built from another graph than this bundle's; build the engine again"),
        ({"flavour": "other"}, "has flavour 'other', this version knows tensorrt, tensorrt-rtx; build it again"),
    ],
)
def test_engines_that_are_not_to_be_run_are_refused(
    change: dict[str, Any], message: str, export_model: BundleExporter, build_engines: EngineBuilder, tmp_path: Path
) -> None:
    bundle = build_engines(export_model("forward"), "forward")
    _change_engine(bundle, "forward", **change)
    with pytest.raises(BundleError, match=message):
        write_standalone(bundle, tmp_path / "service")
    assert not (tmp_path / "service").exists()


def _change_engine(bundle: Bundle, name: str, **values: object) -> None:
    path = bundle.path / "engines" / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


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
