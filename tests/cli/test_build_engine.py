from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from flash_export.cli.main import main
from flash_export.install import get_install_command

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import onnx

    from flash_export.bundle.bundle import Bundle

    BundleFactory = Callable[..., Bundle]

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")


def make_model(op_type: str = "Relu") -> onnx.ModelProto:
    """Make input_ids (batch, seq) -> OP(embedding), of width 4."""
    source = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "seq"])
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "seq", 4])
    table = numpy_helper.from_array(np.arange(64, dtype=np.float32).reshape(16, 4), "table")
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"], name="embedding/Gather_0"),
        helper.make_node(op_type, ["x"], ["logits"], name=f"layers.0/{op_type}_0"),
    ]
    graph = helper.make_graph(nodes, "tiny", [source], [result], [table])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def invoke(bundle: Bundle, *arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "500"}).invoke(main, ["trt", str(bundle.path), *arguments])


def test_engine_is_built_and_summed_up(write_graph_bundle: BundleFactory) -> None:
    bundle = write_graph_bundle(make_model())
    result = invoke(
        bundle,
        "--name",
        "small",
        "--profile",
        "1x1:1x128:2x256",
        "--compute-capability",
        "8.9",
        "--profile",
        "4x1:4x8:4x8",
    )
    assert result.exit_code == 0, result.output
    (engine,) = bundle.list_engines()
    assert engine.name == "small"
    assert engine.targets == ("8.9",)
    rows = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert rows["engine"] == str(bundle.get_engine_path(engine))
    assert rows["flavour"] == f"tensorrt-rtx {engine.version}"
    assert rows["targets"] == "8.9"
    assert rows["profiles"] == "1x1:1x128:2x256; 4x1:4x8:4x8"
    assert rows["layers"] == "4, 2 per block with what is around the 2 (3 float32, 1 int32)"
    assert result.stderr == f"Next: flash-export validate {bundle.path} --backend trt:small\n"


def test_existing_engine_needs_force(write_graph_bundle: BundleFactory) -> None:
    bundle = write_graph_bundle(make_model())
    assert invoke(bundle).exit_code == 0
    again = invoke(bundle)
    assert again.exit_code == 2
    assert "already has an engine 'forward'; replace it with --force" in again.stderr
    assert invoke(bundle, "--force", "--compute-capability", "8.6").exit_code == 0
    assert [engine.targets for engine in bundle.list_engines()] == [("8.6",)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--flavour", "openvino"], "'openvino' is none of auto, tensorrt, tensorrt-rtx"),
        (["--profile", "1x1:1x8"], "Error: profile 1x1:1x8: 2 part(s) where MIN:OPT:MAX has 3"),
        (
            ["--profile", "1x1:1x8:1x99999"],
            "seq 99999 exceeds the graph's maximum 65536; export again with --max-seq-len",
        ),
        (["--compute-capability", "nine"], "Error: compute capability 'nine' is not one"),
        (["--flavour", "tensorrt", "--compute-capability", "8.9"], "compute_capabilities need flavour tensorrt-rtx"),
        (["--graph", "decode"], "has no graph 'decode'; it has forward"),
        (["--name", "a/b"], "name='a/b' is not usable as a file name"),
        (["--workspace-mib", "0"], "0 is not in the range x>=1"),
    ],
)
def test_bad_arguments_exit_with_2_and_one_error(
    write_graph_bundle: BundleFactory, arguments: list[str], message: str
) -> None:
    bundle = write_graph_bundle(make_model())
    result = invoke(bundle, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert bundle.list_engines() == []


def test_refused_operator_is_one_line_with_node_and_operator(write_graph_bundle: BundleFactory) -> None:
    result = invoke(write_graph_bundle(make_model("Unique")))
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "node 'layers.0/Unique_0' (Unique)" in result.stderr


def test_missing_package_exits_with_2(write_graph_bundle: BundleFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    result = invoke(write_graph_bundle(make_model()), "--flavour", "tensorrt-rtx")
    assert result.exit_code == 2
    assert get_install_command("rtx") in result.stderr


def test_not_a_bundle_exits_with_2() -> None:
    result = CliRunner().invoke(main, ["trt", "nowhere"])
    assert result.exit_code == 2
    assert "Error: nowhere is not a folder; give the folder that 'flash-export onnx' wrote" in result.stderr


def test_warnings_of_tensorrt_are_shown(write_graph_bundle: BundleFactory) -> None:
    bundle = write_graph_bundle(make_model(), max_batch=1 << 20, max_seq_len=1 << 30)
    result = invoke(bundle, "--profile", f"1x1:1x1:{1 << 20}x{1 << 30}")
    assert result.exit_code == 0
    assert "Warning: TensorRT: Profile kMAX values are not self-consistent" in result.stderr


def test_help_shows_every_option_and_examples() -> None:
    result = CliRunner().invoke(main, ["trt", "--help"])
    assert result.exit_code == 0
    for option in ("--flavour", "--profile", "--compute-capability", "--graph", "--name", "--force", "--tf32"):
        assert option in result.stdout
    assert "flash-export trt BUNDLE --profile 1x1:1x512:4x4096\n" in result.stdout


def test_help_imports_no_heavy_package() -> None:
    script = "import sys, flash_export.cli.build_engine, flash_export.cli.doctor; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert "click" in modules
    assert {"torch", "onnx", "numpy", "rich", "tensorrt", "tensorrt_rtx"}.isdisjoint(modules)


def test_profiles_are_cut_from_lengths_and_shown(write_graph_bundle: BundleFactory, tmp_path: Path) -> None:
    bundle = write_graph_bundle(make_model())
    (tmp_path / "lengths.csv").write_text("length,count\n100,90\n1000,9\n20000,1\n")
    lengths = ("--length-histogram", str(tmp_path / "lengths.csv"), "--compute-capability", "8.9")
    result = invoke(bundle, *lengths, "--profiles", "2", "--max-batch", "4")
    assert result.exit_code == 0, result.output
    (engine,) = bundle.list_engines()
    assert [profile["input_ids"].max for profile in engine.profiles] == [(4, 1024), (4, 20096)]
    # Padded to the end of one profile, a mean request of 380 tokens has 19,716 of padding; of two, 1,024 and 20,096.
    two = 0.9 * (1024 - 100) + 0.09 * (1024 - 1000) + 0.01 * 96
    assert "380 tokens in the mean" in result.output
    assert "2 profiles: asked for" in result.output
    assert re.search(rf"\b2 +1,024, 20,096 +{two:.0f} +{(19716 - two) / 20096:.0%} +2%", result.output)
    assert re.search(r"size +\S+ KiB, \S+ KiB per profile", result.output)

    result = invoke(bundle, *lengths, "--force")
    assert "1 profile: TensorRT-RTX makes kernels for the shapes that it meets" in result.output
    assert len(bundle.list_engines()[0].profiles) == 1


def test_an_unchanged_build_is_said_to_be_from_the_cache(write_graph_bundle: BundleFactory) -> None:
    bundle = write_graph_bundle(make_model())
    options = ("--compute-capability", "8.9", "--force")
    assert "cache" not in invoke(bundle, *options).output
    assert "before: it is taken from the cache" in invoke(bundle, *options).output
    assert "cache" not in invoke(bundle, *options, "--no-cache").output


def test_check_says_of_each_engine_whether_it_may_be_loaded(write_graph_bundle: BundleFactory, tmp_path: Path) -> None:
    bundle = write_graph_bundle(make_model())
    for name in ("good", "bad"):
        assert invoke(bundle, "--compute-capability", "8.9", "--name", name).exit_code == 0
    result = invoke(bundle, "--check")
    assert result.exit_code == 0
    assert re.search(r"good +forward +tensorrt-rtx \S+ +8.9 +not known", result.output)
    assert "fits" not in result.output
    (bundle.path / "engines" / "bad.engine").write_bytes(b"")
    result = invoke(bundle, "--check")
    assert result.exit_code == 1
    assert re.search(r"bad +forward +tensorrt-rtx \S+ +8.9 +does not fit", result.output)
    assert re.search(r"bad: Must not be loaded here: \S*bad.engine was changed after the build", result.output)
    assert "Build it again: flash-export trt" in result.output
    assert invoke(bundle, "--check", "--name", "good").exit_code == 0
    assert invoke(bundle, "--check", "-q", "--json", "-", "--html", str(tmp_path / "page.html")).exit_code == 1
    result = invoke(bundle, "--check", "--name", "god")
    assert result.exit_code == 2
    assert "has no engine 'god'; it has bad, good (did you mean good?)" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--check",), "has no engine; build one with 'flash-export trt BUNDLE'"),
        (("--check", "--name", "x"), "has no engine 'x'; build one"),
        (("--check", "--force", "--profile", "1x1:1x1:1x1"), "builds nothing, so that --profile, --force would"),
        (("--profiles", "many"), "'many' is neither a number from 1 to 16 nor auto"),
        (("--profiles", "17"), "'17' is neither a number from 1 to 16 nor auto"),
        (("--profiles", "3"), "say which lengths"),
        (("--length-range", "9"), "is no MIN:MAX of lengths"),
        (("--length-histogram", "none.csv"), "none.csv cannot be read"),
        (("--length-range", "1:9", "--profile", "1x1:1x1:1x1"), "profiles and length_range all say"),
    ],
)
def test_bad_options_are_one_line(write_graph_bundle: BundleFactory, arguments: tuple[str, ...], message: str) -> None:
    bundle = write_graph_bundle(make_model())
    result = invoke(bundle, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert bundle.list_engines() == []
