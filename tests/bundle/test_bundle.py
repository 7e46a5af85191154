from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flash_export.bundle.bundle import Bundle, reads_bundles
from flash_export.bundle.manifest import AxisRange, EngineManifest, GraphSpec, Manifest, ModelFacts, ProfileShapes
from flash_export.bundle.quantization_record import ProductRecord, QuantizationRecord
from flash_export.errors import BundleError
from flash_export.files import hash_file, hash_files, replace_folder
from flash_export.interface import TensorSpec, TokenIds
from tests.conftest import INTERFACE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

INPUT = TensorSpec("input_ids", "int64", ("batch", "seq"), TokenIds(256))
OUTPUT = TensorSpec("logits", "float32", ("batch", "seq", 256))
GRAPH = GraphSpec("model.onnx", 20, "fp32", (INPUT,), (OUTPUT,), {"batch": AxisRange(1, 64), "seq": AxisRange(1, 4096)})
JUNK = st.sampled_from((None, True, -1, 1.5, "junk", [], ["junk"], {}, {"junk": 1}))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Write a bundle whose files have any content; opening it never looks inside."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in ("config.json", "model.onnx", "model.safetensors"):
        (folder / name).write_text(f"content of {name}")
    files = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
    manifest = Manifest(
        versions={"python": "3.11.0"},
        interface=INTERFACE,
        graphs={"forward": GRAPH},
        checkpoint={"source": "model.pt", "format": "flash-pytorch", "sha256": "0" * 64},
        files=files,
        model=ModelFacts("flash", 1000, 2, {"1024": 4000}),
    )
    (folder / "manifest.json").write_text(manifest.to_json())
    return Bundle.open(folder)


def describe_engine(bundle: Bundle, plan: bytes, **changes: Any) -> EngineManifest:
    """Return the manifest of a made-up engine; ``changes`` replace fields of it."""
    profile = {"input_ids": ProfileShapes((1, 1), (1, 512), (8, 4096))}
    engine = EngineManifest(
        name="forward",
        flavour="tensorrt-rtx",
        version="1.7.0",
        targets=("8.9",),
        graph="forward",
        graph_sha256=bundle.manifest.files["model.onnx"],
        engine_sha256=hashlib.sha256(plan).hexdigest(),
        profiles=(profile,),
        inputs=(INPUT,),
        outputs=(OUTPUT,),
        num_layers=30,
        layer_dtypes={"float32": 30},
        build_seconds=1.5,
        size_bytes=len(plan),
    )
    return dataclasses.replace(engine, **changes)


def make_engine(bundle: Bundle, plan: bytes, **changes: Any) -> EngineManifest:
    """Store a made-up engine."""
    engine = describe_engine(bundle, plan, **changes)
    bundle.write_engine(engine, plan)
    return engine


def read_manifest(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return values


def list_leaves(values: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the path of every value inside JSON, containers included."""
    children: list[tuple[str | int, Any]] = []
    if isinstance(values, dict):
        children = list(values.items())
    elif isinstance(values, list):
        children = list(enumerate(values))
    return [path, *(leaf for name, child in children for leaf in list_leaves(child, (*path, name)))]


def set_leaf(values: Any, path: tuple[str | int, ...], value: object) -> Any:
    if not path:
        return value
    for name in path[:-1]:
        values = values[name]
    values[path[-1]] = value
    return None


def test_opened_bundle_says_what_was_written(bundle: Bundle) -> None:
    assert bundle.get_graph() == GRAPH
    assert bundle.get_graph_path() == bundle.path / "model.onnx"
    assert bundle.list_engines() == []
    assert Bundle.open(str(bundle.path)) == bundle


@pytest.mark.parametrize("name", ["config.json", "model.onnx", "model.safetensors"])
def test_changed_file_is_named(bundle: Bundle, name: str) -> None:
    with (bundle.path / name).open("ab") as stream:
        stream.write(b"!")
    with pytest.raises(BundleError, match=rf"{name} was changed after the export: sha256 .* export the bundle again"):
        Bundle.open(bundle.path)


def test_first_of_several_changed_files_is_named(bundle: Bundle) -> None:
    for name in ("model.onnx", "model.safetensors"):
        (bundle.path / name).write_text("changed")
    with pytest.raises(BundleError, match=r"model.onnx was changed after the export"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize("name", ["config.json", "model.onnx", "model.safetensors"])
def test_missing_file_is_named(bundle: Bundle, name: str) -> None:
    (bundle.path / name).unlink()
    with pytest.raises(BundleError, match=rf"{name} is missing, but manifest.json names it; export the bundle again"):
        Bundle.open(bundle.path)


def test_file_that_became_a_folder_is_missing(bundle: Bundle) -> None:
    (bundle.path / "model.onnx").unlink()
    (bundle.path / "model.onnx").mkdir()
    with pytest.raises(BundleError, match=r"model.onnx is missing"):
        Bundle.open(bundle.path)


def test_what_is_no_bundle(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "none", "none is not a folder; give the folder that 'flash-export onnx' wrote"),
        (bundle.path / "model.onnx", "model.onnx is not a folder"),
        (tmp_path / "empty", "empty is not a bundle: it has no manifest.json; make one with 'flash-export onnx'"),
    ):
        with pytest.raises(BundleError, match=message):
            Bundle.open(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "manifest.json cannot be read as JSON"),
        (b"{", "manifest.json cannot be read as JSON"),
        (b"\xff\xfe", "manifest.json cannot be read as JSON"),
        (b"[" * 100_000, "manifest.json cannot be read as JSON"),
        (b"[]", "manifest.json holds a list, not a JSON object"),
        (b"null", "manifest.json holds null, not a JSON object"),
        (b"{}", "manifest.json has format_version None, this version reads 3"),
        (b'{"format_version": 3}', "manifest.json is damaged: versions is missing; export the bundle again"),
    ],
)
def test_damaged_manifest(bundle: Bundle, content: bytes, message: str) -> None:
    (bundle.path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle.path)


@pytest.mark.parametrize("name", ["versions", "graphs", "checkpoint", "files"])
def test_manifest_that_lacks_a_field(bundle: Bundle, name: str) -> None:
    values = read_manifest(bundle.path)
    del values[name]
    (bundle.path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(BundleError, match=f"is damaged: {name} is missing; export the bundle again"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize("version", [0, 4, "3", None])
def test_manifest_of_another_version(bundle: Bundle, version: object) -> None:
    values = {**read_manifest(bundle.path), "format_version": version, "news": "of the future"}
    (bundle.path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(BundleError, match=f"has format_version {version!r}, this version reads 3; export the bundle"):
        Bundle.open(bundle.path)


def test_manifest_that_names_a_file_outside(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("secret")
    values = read_manifest(bundle.path)
    values["files"]["../outside"] = hash_file(tmp_path / "outside")
    (bundle.path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(BundleError, match=r"'../outside' is not a file of the bundle"):
        Bundle.open(bundle.path)


def test_manifest_without_the_hash_of_a_graph(bundle: Bundle) -> None:
    values = read_manifest(bundle.path)
    del values["files"]["model.onnx"]
    (bundle.path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(BundleError, match=r"is damaged: it has no sha256 of model.onnx"):
        Bundle.open(bundle.path)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_to_a_manifest_is_a_bundle_error_or_harmless(bundle: Bundle, data: st.DataObject) -> None:
    path = bundle.path / "manifest.json"
    text = path.read_text()
    values = json.loads(text)
    changed = set_leaf(values, data.draw(st.sampled_from(list_leaves(values))), data.draw(JUNK))
    path.write_text(json.dumps(values if changed is None else changed))
    try:
        opened = Bundle.open(bundle.path)
    except BundleError:
        pass
    else:
        assert is_kept(json.loads(path.read_text()), json.loads(opened.manifest.to_json()))
    finally:
        path.write_text(text)


def is_kept(said: object, kept: object) -> bool:
    """Return whether all that a manifest said is still said; an empty record gets the defaults of its fields."""
    if isinstance(said, dict) and isinstance(kept, dict):
        return all(name in kept and is_kept(value, kept[name]) for name, value in said.items())
    return said == kept


def test_unknown_graph_is_named_with_the_known_ones(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="has no graph 'decode'; it has forward"):
        bundle.get_graph("decode")


def test_written_engine_is_listed_and_found(bundle: Bundle) -> None:
    second = make_engine(bundle, b"second", name="second")
    first = make_engine(bundle, b"first", name="first")
    assert Bundle.open(bundle.path).list_engines() == [first, second]
    assert bundle.get_engine_path(second).read_bytes() == b"second"
    assert sorted(path.name for path in (bundle.path / "engines").iterdir()) == [
        "first.engine",
        "first.json",
        "second.engine",
        "second.json",
    ]


def test_changed_engine_is_never_run(bundle: Bundle) -> None:
    engine = make_engine(bundle, b"plan")
    (bundle.path / "engines" / "forward.engine").write_bytes(b"evil")
    with pytest.raises(BundleError, match=r"forward.engine was changed after the build; never run it"):
        bundle.get_engine_path(engine)


def test_missing_engine_is_named(bundle: Bundle) -> None:
    engine = make_engine(bundle, b"plan")
    (bundle.path / "engines" / "forward.engine").unlink()
    with pytest.raises(BundleError, match=r"forward.engine is missing, but forward.json names it; build the engine"):
        bundle.get_engine_path(engine)


def test_engine_of_another_graph_is_refused(bundle: Bundle) -> None:
    engine = make_engine(bundle, b"plan", graph_sha256="0" * 64)
    with pytest.raises(BundleError, match=r"forward.engine was built from another graph than this bundle's"):
        bundle.get_engine_path(engine)


def test_engine_of_an_unknown_graph_is_refused(bundle: Bundle) -> None:
    engine = make_engine(bundle, b"plan", graph="decode")
    with pytest.raises(BundleError, match="has no graph 'decode'; it has forward"):
        bundle.get_engine_path(engine)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine_sha256": None}, "forward.json is damaged: engine_sha256 is null, wanted text; build the engine"),
        ({"profiles": [["junk"]]}, r"forward.json is damaged: profiles\[0\] is a list, wanted an object"),
        ({"news": 1}, "forward.json is damaged: it has the unknown field 'news'"),
        ({"name": "other"}, "forward.json describes the engine 'other'; build the engine again"),
        ({"name": "../../outside"}, "forward.json describes the engine '../../outside'"),
    ],
)
def test_changed_engine_manifest(bundle: Bundle, changes: dict[str, Any], message: str) -> None:
    make_engine(bundle, b"plan")
    path = bundle.path / "engines" / "forward.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(BundleError, match=message):
        bundle.list_engines()


def test_engine_manifest_that_is_not_json(bundle: Bundle) -> None:
    make_engine(bundle, b"plan")
    (bundle.path / "engines" / "forward.json").write_text("{")
    with pytest.raises(BundleError, match=r"forward.json cannot be read as JSON"):
        bundle.list_engines()


def test_full_disk_while_an_engine_is_written_leaves_the_old_one(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(bundle, b"plan")

    def fail(_: int) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", fail)
        with pytest.raises(BundleError, match="No space left on device"):
            bundle.write_engine(engine, b"new plan")
    assert bundle.get_engine_path(engine).read_bytes() == b"plan"
    assert len(list((bundle.path / "engines").iterdir())) == 2


# --- several processes


def make_engines(bundle: Bundle, prefix: str, count: int) -> None:
    """Store engines one after another; none may be lost."""
    plan = prefix.encode()
    for index in range(count):
        bundle.write_engine(describe_engine(bundle, plan, name=f"{prefix}{index}"), plan)


def test_engines_that_threads_store_at_once_are_all_there(bundle: Bundle) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda prefix: make_engines(Bundle.open(bundle.path), prefix, 6), "abcd"))
    assert [engine.name for engine in bundle.list_engines()] == sorted(f"{p}{i}" for p in "abcd" for i in range(6))
    for engine in bundle.list_engines():
        bundle.get_engine_path(engine)
    assert [path.name for path in bundle.path.iterdir() if path.name.startswith(".")] == []


ENGINE_WRITER = """
import sys
from dataclasses import replace
from hashlib import sha256
from flash_export.bundle.bundle import Bundle, reads_bundles

bundle, prefix = Bundle.open(sys.argv[1]), sys.argv[2]
(pattern,) = (engine for engine in bundle.list_engines() if engine.name == "pattern")
for index in range(8):
    plan = f"{prefix}{index}".encode()
    bundle.write_engine(replace(pattern, name=f"{prefix}{index}", engine_sha256=sha256(plan).hexdigest()), plan)
"""


def test_engines_that_processes_store_at_once_are_all_there(bundle: Bundle) -> None:
    make_engine(bundle, b"plan", name="pattern")
    writers = [subprocess.Popen([sys.executable, "-c", ENGINE_WRITER, bundle.path, prefix]) for prefix in "abc"]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    wanted = sorted(["pattern", *(f"{prefix}{index}" for prefix in "abc" for index in range(8))])
    assert [engine.name for engine in bundle.list_engines()] == wanted


def test_engine_of_a_name_that_another_process_took_is_told(bundle: Bundle) -> None:
    engine = make_engine(bundle, b"first")
    with pytest.raises(BundleError, match="already has an engine 'forward'; replace it with --force"):
        bundle.write_engine(engine, b"second", overwrite=False)
    assert bundle.get_engine_path(engine).read_bytes() == b"first"


def replace_bundle(bundle: Bundle) -> None:
    """Put another good bundle in the place of this one, as an export with --force does."""
    with replace_folder(bundle.path) as staging:
        for path in bundle.path.iterdir():
            if path.is_file():
                shutil.copy(path, staging)
        (staging / "model.onnx").write_bytes(b"another")
        files = {**bundle.manifest.files, "model.onnx": hash_file(staging / "model.onnx")}
        (staging / "manifest.json").write_text(dataclasses.replace(bundle.manifest, files=files).to_json())


def test_engine_for_a_bundle_that_was_replaced_is_not_stored(bundle: Bundle) -> None:
    engine = describe_engine(bundle, b"plan")
    replace_bundle(bundle)
    with pytest.raises(BundleError, match=r"bundle was replaced while it was read; run it again"):
        bundle.write_engine(engine, b"plan")
    assert Bundle.open(bundle.path).list_engines() == []


def test_engine_for_a_bundle_that_was_removed_is_not_stored(bundle: Bundle) -> None:
    engine = describe_engine(bundle, b"plan")
    shutil.rmtree(bundle.path)
    with pytest.raises(BundleError, match="was replaced while it was read"):
        bundle.write_engine(engine, b"plan")
    assert not bundle.path.exists()


@reads_bundles
def read(bundles: list[Bundle], change: Callable[[], object], error: Exception | None = None) -> str:
    change()
    if error is not None:
        raise error
    return "read"


@pytest.mark.parametrize("error", [None, ValueError("the model is wrong"), BundleError("a file is missing")])
def test_what_is_found_of_a_bundle_that_was_replaced_does_not_count(bundle: Bundle, error: Exception | None) -> None:
    with pytest.raises(BundleError, match="was replaced while it was read; run it again") as caught:
        read([bundle], lambda: replace_bundle(bundle), error)
    assert caught.value.__cause__ is error


def test_what_is_found_of_a_bundle_that_stayed_counts(bundle: Bundle) -> None:
    assert read([bundle], lambda: None) == "read"
    with pytest.raises(ValueError, match="the model is wrong"):
        read([bundle], lambda: None, ValueError("the model is wrong"))
    assert read([bundle], lambda: make_engine(bundle, b"plan")) == "read"


def test_file_that_was_written_over_is_noticed(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="was replaced while it was read"):
        read([bundle], lambda: (bundle.path / "model.onnx").write_text("longer content of model.onnx"))


@pytest.mark.parametrize("when", ["before", "after"])
def test_bundle_that_is_replaced_while_it_is_opened_is_no_damaged_one(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def hash_then_replace(paths: list[Path]) -> list[str]:
        hashes = hash_files(paths)
        replace_bundle(bundle)
        return hashes

    def replace_then_hash(paths: list[Path]) -> list[str]:
        replace_bundle(bundle)
        return hash_files(paths)

    monkeypatch.setattr(
        "flash_export.bundle.bundle.hash_files", {"before": replace_then_hash, "after": hash_then_replace}[when]
    )
    with pytest.raises(BundleError, match="was replaced while it was read; run it again"):
        Bundle.open(bundle.path)


# --- what is none of the bundle's


def test_bundle_with_a_link_out_of_it_is_not_opened(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir(mode=0o700)
    (bundle.path / "engines").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="engines is a symbolic link out of the bundle"):
        Bundle.open(bundle.path)
    with pytest.raises(BundleError, match="engines is a symbolic link out of the bundle"):
        bundle.write_engine(describe_engine(bundle, b"plan"), b"plan")
    assert (tmp_path / "outside").stat().st_mode & 0o777 == 0o700
    assert list((tmp_path / "outside").iterdir()) == []


def test_engines_that_are_linked_over_keep_their_permissions(bundle: Bundle, tmp_path: Path) -> None:
    make_engine(bundle, b"first", name="first")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "secret").chmod(0o600)
    os.link(tmp_path / "secret", bundle.path / "engines" / "hard")
    (bundle.path / "engines" / "first.engine").chmod(0o640)
    (bundle.path / "engines" / "notes").mkdir()
    (bundle.path / "engines" / "notes" / "a").write_text("mine")
    make_engine(bundle, b"second", name="second")
    folder = bundle.path / "engines"
    assert (folder / "first.engine").stat().st_mode & 0o777 == 0o640
    assert (folder / "hard").stat().st_mode & 0o777 == (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert (folder / "notes" / "a").read_text() == "mine"
    assert (folder / "second.engine").stat().st_mode & 0o777 == 0o644


def test_graph_that_takes_weights_from_elsewhere_is_refused(bundle: Bundle) -> None:
    model = onnx.ModelProto()
    model.graph.initializer.add(name="w").external_data.add(key="location", value="../../etc/passwd")
    (bundle.path / "model.onnx").write_bytes(model.SerializeToString())
    values = read_manifest(bundle.path)
    values["files"]["model.onnx"] = hash_file(bundle.path / "model.onnx")
    (bundle.path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(BundleError, match=r"takes weights from '../../etc/passwd', which is not part of it"):
        Bundle.open(bundle.path)


def test_opening_removes_what_killed_processes_left(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_engine(bundle, b"plan")
    (bundle.path / "reports").mkdir()
    (tmp_path / "system").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "system"))
    before = sorted(tmp_path.rglob("*"))
    for folder in (tmp_path, tmp_path / "system", bundle.path, bundle.path / "engines", bundle.path / "reports"):
        (folder / ".flash-export-abcdefgh.tmp").mkdir()
        (folder / ".flash-export-abcdefgh.tmp" / "a").write_text("half")
        (folder / ".flash-export-12345678.tmp").write_text("half")
    Bundle.open(bundle.path)
    assert sorted(tmp_path.rglob("*")) == before


# --- quantization.json


RECORD = QuantizationRecord(
    "int8",
    "0" * 64,
    "held-out text",
    "1" * 64,
    (256, 512),
    1000,
    0.005,
    0.002,
    {"kl_bits": 0.003},
    1.5,
    1.49,
    None,
    (
        ProductRecord("layers.0.out", "int8", 300, 0.001, 2, 0.01, 8.5, 0.7, "it costs much"),
        ProductRecord("head", "fp32", 100, None, reason="--keep head"),
    ),
)


def add_file(bundle: Bundle, name: str, text: str) -> Bundle:
    (bundle.path / name).write_text(text)
    files = {**bundle.manifest.files, name: hash_file(bundle.path / name)}
    graphs = {"forward": dataclasses.replace(GRAPH, precision="int8")}
    manifest = dataclasses.replace(bundle.manifest, files=files, graphs=graphs)
    (bundle.path / "manifest.json").write_text(manifest.to_json())
    return Bundle.open(bundle.path)


def test_a_bundle_that_was_not_quantized_says_so(bundle: Bundle) -> None:
    assert bundle.read_quantization() is None


def test_what_was_written_of_a_quantization_is_read_back(bundle: Bundle) -> None:
    found = add_file(bundle, "quantization.json", RECORD.to_json()).read_quantization()
    assert found == RECORD
    assert found.quantized_share == 0.75


def test_a_changed_record_is_a_changed_bundle(bundle: Bundle) -> None:
    add_file(bundle, "quantization.json", RECORD.to_json())
    (bundle.path / "quantization.json").write_text(dataclasses.replace(RECORD, budget=0.5).to_json())
    with pytest.raises(BundleError, match=r"quantization\.json was changed after the export"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize("path", list_leaves(json.loads(RECORD.to_json()))[1:], ids=str)
def test_a_damaged_record_is_named(bundle: Bundle, path: tuple[str | int, ...]) -> None:
    values = json.loads(RECORD.to_json())
    set_leaf(values, path, {"un": "known"})
    with pytest.raises(BundleError, match=r"quantization\.json is damaged: .*; quantize it again"):
        add_file(bundle, "quantization.json", json.dumps(values)).read_quantization()


def test_a_record_holds_no_number_that_json_has_not() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dataclasses.replace(RECORD, loss=float("inf")).to_json()


@pytest.mark.parametrize("name", ["probes.json", "quantization.json", "heldout.json", "heldout.txt"])
def test_a_file_that_was_added_later_is_not_read(bundle: Bundle, name: str) -> None:
    (bundle.path / name).write_text("{}")
    with pytest.raises(BundleError, match=rf"{name} is not of this export: manifest\.json does not name it; remove it"):
        Bundle.open(bundle.path)


def test_files_that_nobody_reads_may_be_added(bundle: Bundle) -> None:
    (bundle.path / "NOTES.md").write_text("for my colleagues")
    assert Bundle.open(bundle.path) == bundle


def test_a_quantized_graph_and_its_record_belong_together(bundle: Bundle) -> None:
    values = read_manifest(bundle.path)
    values["graphs"]["forward"]["precision"] = "int8"
    (bundle.path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(BundleError, match=r"the graph 'forward' is int8, but the bundle has no quantization\.json"):
        Bundle.open(bundle.path)

    other = dataclasses.replace(RECORD, scheme="fp8").to_json()
    with pytest.raises(BundleError, match=r"says fp8, manifest\.json says int8 of the graph 'forward'; quantize it"):
        add_file(bundle, "quantization.json", other).read_quantization()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vocab_size": 5}, "model_type is missing"),
        ({"model_type": 8}, "model_type is a whole number, wanted text"),
    ],
)
def test_a_config_that_no_model_has(bundle: Bundle, config: dict[str, Any], message: str) -> None:
    (bundle.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match=rf"config\.json is damaged: {message}; export the bundle again"):
        bundle.read_config()
