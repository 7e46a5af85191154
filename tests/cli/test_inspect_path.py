"""``flash-export inspect``: what it says of good paths is true, and anything else is one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from flash_export.bundle.manifest import EngineManifest, ProfileShapes
from flash_export.cli.main import main
from flash_export.interface import TensorSpec

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle

SCRIPT = Path(sys.executable).parent / "flash-export"
PLAN = b"not a real engine"


def inspect(path: str | Path, *options: str) -> Result:
    return CliRunner(env={"COLUMNS": "500"}).invoke(main, ["inspect", str(path), *options])


def check_refused(result: Result, *fragments: str) -> None:
    """Check exit code 2, nothing on stdout and one line on stderr with every fragment."""
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert "internal error" not in result.stderr
    assert [fragment for fragment in fragments if fragment not in result.stderr] == [], result.stderr


def read_json(path: Path, *options: str) -> dict[str, Any]:
    result = inspect(path, "--json", "-", "--quiet", *options)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    values: dict[str, Any] = json.loads(result.stdout)
    return values


@pytest.fixture
def engine(bundle: Bundle) -> EngineManifest:
    """Store a made-up engine in the bundle."""
    axes: tuple[int | str, ...] = ("batch", "seq")
    profile = ProfileShapes((1, 1), (1, 512), (8, 512))
    manifest = EngineManifest(
        name="small",
        flavour="tensorrt-rtx",
        version="1.7.0.5",
        targets=("8.9", "12.0"),
        graph="forward",
        graph_sha256=bundle.manifest.files["model.onnx"],
        engine_sha256=sha256(PLAN).hexdigest(),
        profiles=({"input_ids": profile, "attention_mask": profile},),
        inputs=(TensorSpec("input_ids", "int64", axes), TensorSpec("attention_mask", "int64", axes)),
        outputs=(TensorSpec("logits", "float32", (*axes, 17)),),
        num_layers=321,
        layer_dtypes={"float32": 300, "int64": 21},
        build_seconds=4.25,
        size_bytes=3 << 20,
    )
    bundle.write_engine(manifest, PLAN)
    return manifest


# --- what is said


def test_text_of_a_bundle(bundle: Bundle) -> None:
    result = inspect(bundle.path)
    assert (result.exit_code, result.stderr) == (0, f"Next: flash-export trt {bundle.path}\n")
    model, graph = bundle.load_model(), onnx.load(bundle.get_graph_path()).graph
    lines = result.stdout.splitlines()
    assert lines[0] == f"bundle {bundle.path}"
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[1:] if len(line.split()) > 1}
    provenance = bundle.manifest.checkpoint["sha256"]
    assert rows["from"] == f"model.safetensors (flash-export, sha256 {provenance[:12]}...)"
    assert rows["model"] == f"flash, {model.count_parameters():,} parameters, 2 blocks"
    flops = 2 * model.config.count_macs(512) // 512
    assert rows["FLOPs"] == f"per token: {flops:,} at 512 tokens"
    assert rows["forward"] == "fp32, batch 1 to 64, seq 1 to 512"
    assert rows["files"] == "4, all with the sha256 that the manifest says"
    assert f"torch {bundle.manifest.versions['torch']}" in rows["made"]
    assert rows["inputs"] == "input_ids int64 (batch, seq), attention_mask int64 (batch, seq)"
    assert rows["outputs"] == "logits float32 (batch, seq, 17)"
    assert rows["nodes"].startswith(f"{len(graph.node)}, ")
    assert "in each of 2 blocks; opset 20; flash-export " in rows["nodes"]
    (operator, count), *_ = Counter(node.op_type for node in graph.node).most_common()
    assert rows["operators"].startswith(f"{operator} {count}, ")


def test_text_fits_80_columns(bundle: Bundle, engine: EngineManifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.path)
    for path in (".", "model.onnx", f"engines/{engine.name}.engine"):
        result = CliRunner(env={"COLUMNS": "80"}).invoke(main, ["inspect", path])
        assert result.exit_code == 0, result.output
        assert [line for line in result.stdout.splitlines() if len(line) > 80] == []
        assert result.stdout.split() == inspect(path).stdout.split(), "wrapping loses words"


def test_a_quantized_bundle_says_what_that_costs(bundle: Bundle, int8_bundle: Bundle) -> None:
    record = int8_bundle.read_quantization()
    assert record is not None
    (line,) = (line for line in inspect(int8_bundle.path).stdout.splitlines() if line.startswith("  quantized"))
    assert line == (f"  quantized int8: 100% of the weights, loss {record.loss:.2%}, accepted 0.50%")
    values = read_json(int8_bundle.path)
    assert values["quantization"] == json.loads((int8_bundle.path / "quantization.json").read_text())
    assert "  quantized" not in inspect(bundle.path).stdout
    assert read_json(bundle.path)["quantization"] is None


def test_json_of_a_bundle_says_the_manifest_and_the_counts(bundle: Bundle) -> None:
    values = read_json(bundle.path)
    assert (values["kind"], values["path"], values["engines"]) == ("bundle", str(bundle.path), [])
    assert values["manifest"] == json.loads((bundle.path / "manifest.json").read_text())
    graph = onnx.load(bundle.get_graph_path()).graph
    counts = values["graphs"]["forward"]
    assert counts["num_nodes"] == len(graph.node) == sum(counts["operators"].values())
    assert counts["operators"] == Counter(node.op_type for node in graph.node)
    assert counts["nodes_by_block"] == {
        str(block): sum(f"layers.{block}." in f"{node.name.split('/')[0]}." for node in graph.node) for block in (0, 1)
    }
    assert counts["opset"] == 20


def test_graph_alone(bundle: Bundle) -> None:
    path = bundle.get_graph_path()
    assert read_json(path)["graphs"] == {"model.onnx": read_json(bundle.path)["graphs"]["forward"]}
    text = inspect(path).stdout.splitlines()
    assert text[:3] == [f"graph {path}", "", "graph model.onnx"]
    assert any(line.split() == ["outputs", "logits", "float32", "(batch,", "seq,", "17)"] for line in text)


def test_parameters_are_counted_by_elements_and_bytes(tmp_path: Path) -> None:
    constants = [
        helper.make_tensor("w", TensorProto.FLOAT, (4, 3), [0.0] * 12),
        helper.make_tensor("h", TensorProto.FLOAT16, (5,), [0.0] * 5),
        helper.make_tensor("shape", TensorProto.INT64, (2,), [1, 2]),
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="layers.0.linear/MatMul_0")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), tmp_path / "a.onnx")
    assert read_json(tmp_path / "a.onnx")["graphs"]["a.onnx"] == {
        "opset": 21,
        "inputs": ["x float32 (n, 4)"],
        "outputs": ["y float32 (n, 3)"],
        "operators": {"MatMul": 1},
        "nodes_by_block": {"0": 1},
        "num_nodes": 1,
        "num_parameters": 17,
        "constant_bytes": 12 * 4 + 5 * 2 + 2 * 8,
        "producer": "",
        "metadata": {},
    }


@pytest.mark.parametrize("suffix", [".engine", ".json"])
def test_engine(bundle: Bundle, engine: EngineManifest, suffix: str) -> None:
    path = bundle.path / "engines" / f"small{suffix}"
    assert inspect(path).stdout.splitlines() == [
        f"engine {path}",
        "",
        "engine small",
        "  built     tensorrt-rtx 1.7.0.5 for 8.9, 12.0, in 4.2 s",
        "  inputs    input_ids int64 (batch, seq), attention_mask int64 (batch, seq)",
        "  outputs   logits float32 (batch, seq, 17)",
        "  profile 0 input_ids 1x1:1x512:8x512; attention_mask 1x1:1x512:8x512",
        "  layers    321 (float32 300, int64 21), 3.0 MiB",
        f"  graph     forward, sha256 {engine.graph_sha256[:12]}...",
    ]
    values = read_json(path)
    assert values["kind"] == "engine"
    assert values["engines"] == [json.loads((bundle.path / "engines" / "small.json").read_text())]


def test_bundle_lists_its_engines(bundle: Bundle, engine: EngineManifest) -> None:
    assert f"engine {engine.name}" in inspect(bundle.path).stdout.splitlines()
    assert inspect(bundle.path).stderr == f"Next: flash-export validate {bundle.path}\n"
    assert [values["name"] for values in read_json(bundle.path)["engines"]] == ["small"]


def test_engine_of_the_current_folder(bundle: Bundle, engine: EngineManifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.path / "engines")
    assert inspect(f"{engine.name}.engine").exit_code == 0


# --- what is refused


def test_paths_that_are_nothing_known(bundle: Bundle, engine: EngineManifest, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "stray.engine").write_bytes(PLAN)
    engines = bundle.path / "engines"
    (engines / "other.engine").write_bytes(PLAN)
    for path, message in {
        tmp_path / "none": "none does not exist; give a bundle folder, an .onnx file or an engine",
        engines / "none.engine": "none.engine does not exist",
        tmp_path / "empty": "empty is not a bundle: it has no manifest.json; make one with 'flash-export onnx'",
        engines: "engines is not a bundle: it has no manifest.json",
        tmp_path / "notes.txt": "notes.txt is neither a bundle (a folder with manifest.json), an .onnx file, nor an",
        tmp_path / "stray.engine": "stray.engine is neither a bundle",
        bundle.path / "model.safetensors": "model.safetensors is neither a bundle",
        engines / "other.engine": "other.engine has no manifest other.json beside it; build the engine again",
    }.items():
        check_refused(inspect(path), message)
        check_refused(inspect(path, "--json", "-"), message)
    assert inspect(engines / f"{engine.name}.engine").exit_code == 0


def test_changed_bundle(bundle: Bundle, engine: EngineManifest) -> None:
    with bundle.get_graph_path().open("ab") as stream:
        stream.write(b"!")
    for path in (bundle.path, bundle.path / "engines" / f"{engine.name}.engine"):
        check_refused(inspect(path), "model.onnx was changed after the export", "export the bundle again")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "manifest.json cannot be read as JSON"),
        ("[]", "manifest.json holds a list, not a JSON object"),
        ('{"format_version": 4}', "manifest.json has format_version 4, this version reads 3; export the bundle again"),
        ('{"format_version": 3, "versions": []}', "manifest.json is damaged: versions is a list, wanted an object"),
    ],
)
def test_damaged_manifest(bundle: Bundle, text: str, message: str) -> None:
    (bundle.path / "manifest.json").write_text(text)
    check_refused(inspect(bundle.path), message)


def test_damaged_engines(bundle: Bundle, engine: EngineManifest) -> None:
    engines = bundle.path / "engines"
    manifest = (engines / "small.json").read_text()
    (engines / "small.engine").write_bytes(b"evil")
    check_refused(inspect(engines / "small.engine"), "small.engine was changed after the build; never run it")
    (engines / "small.engine").write_bytes(PLAN)
    (engines / "small.json").write_text(manifest.replace(engine.graph_sha256, "0" * 64))
    check_refused(inspect(engines / "small.engine"), "was built from another graph than this bundle's")
    (engines / "small.json").write_text(manifest.replace("4.25", '"fast"'))
    check_refused(
        inspect(bundle.path), "small.json is damaged: build_seconds is text, wanted a number; build the engine"
    )
    (engines / "small.json").write_text("")
    check_refused(inspect(engines / "small.json"), "small.json cannot be read as JSON")


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.01, 0.5, 0.999])
def test_truncated_graph(bundle: Bundle, tmp_path: Path, fraction: float) -> None:
    data = bundle.get_graph_path().read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[: int(len(data) * fraction)])
    check_refused(inspect(tmp_path / "cut.onnx"), "cut.onnx ", "it is damaged or of another kind")


@pytest.mark.parametrize("data", [b"\x00" * 100, b"<html></html>", b'{"a": 1}', b"\xff" * 1000])
def test_graph_of_another_kind(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "other.onnx").write_bytes(data)
    check_refused(inspect(tmp_path / "other.onnx"), "other.onnx ", "it is damaged or of another kind")


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=4),
    options=st.sampled_from(([], ["--json", "-"])),
)
def test_damaged_bytes_are_one_line_or_harmless(
    tmp_path: Path, changes: list[tuple[float, int]], options: list[str]
) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["x"], name="embedding/Gather_0"),
            helper.make_node("Relu", ["x"], ["y"], name="layers.0/Relu_0"),
        ],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "seq"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "seq", 2])],
        [helper.make_tensor("table", TensorProto.FLOAT, (3, 2), [0.0] * 6)],
    )
    data = bytearray(helper.make_model(graph).SerializeToString())
    for position, value in changes:
        data[int(position * len(data))] = value
    (tmp_path / "damaged.onnx").write_bytes(data)
    result = inspect(tmp_path / "damaged.onnx", *options)
    if result.exit_code:
        check_refused(result, "damaged.onnx ", "damaged")
    else:
        assert result.stderr.splitlines()[-1].startswith("Next: flash-export validate BUNDLE --onnx ")


def test_installed_script(bundle: Bundle, tmp_path: Path) -> None:
    good = subprocess.run(
        [SCRIPT, "inspect", bundle.path, "--json", "-", "-q"], capture_output=True, text=True, check=False
    )
    assert (good.returncode, good.stderr) == (0, "")
    assert json.loads(good.stdout) == read_json(bundle.path)
    bad = subprocess.run([SCRIPT, "inspect", tmp_path / "none"], capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert (
        bad.stderr == f"Error: {tmp_path / 'none'} does not exist; give a bundle folder, an .onnx file or an engine\n"
    )


def test_traceback_is_shown_when_asked_for(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--traceback", "inspect", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert result.stderr.startswith("Traceback (most recent call last):")
