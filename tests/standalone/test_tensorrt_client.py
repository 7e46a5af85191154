"""The C++ program for TensorRT: compiled against NVIDIA's headers, and run on what stands in for TensorRT.

No GPU is needed: the stand-in has the interface of TensorRT and of the CUDA runtime that the program uses, and runs the
graph of an engine on onnxruntime. So what is tested is the program, not an engine.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest

from flash_export.generation.generate import Generator
from flash_export.generation.sampling import SamplingOptions
from flash_export.runtime.ort import OrtRunner
from flash_export.runtime.trt_api import has_cuda_device
from flash_export.standalone.standalone import write_standalone
from tests.standalone.examples import GREEDY, INPUTS, LENGTHS, LONG, draw_prompts, expect
from tests.standalone.programs import build_cpp, build_on_stand_in, build_tensorrt

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle
    from flash_export.generation.state import State
    from tests.standalone.conftest import BundleExporter, EngineBuilder

pytestmark = [pytest.mark.client, pytest.mark.timeout(300)]
GRAPHS = {
    "flash": ("prefill", "extend", "decode"),
    "batch-of-3": ("prefill", "extend", "decode"),
    "fp16": ("prefill", "extend", "decode"),
    "transformer": ("prefill", "decode"),
}


def run(program: Path, *arguments: str | bytes | Path) -> bytes:
    done = call(program, *arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def call(program: Path, *arguments: str | bytes | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([program, program.parents[2] / "engines", *arguments], capture_output=True, check=False)


def stand_in(bundle: Bundle, service: Path) -> Path:
    """Put what the stand-in reads where the engines are, and compile the program for it."""
    write_standalone(bundle, service)
    for engine in bundle.list_engines():
        lines = [f"graph {bundle.get_graph_path(engine.graph)}"]
        for number, profile in enumerate(engine.profiles):
            for name, shapes in profile.items():
                least, most = ("x".join(map(str, sizes)) for sizes in (shapes.min, shapes.max))
                lines.append(f"profile {number} {name} {least} {most}")
        file = service / "engines" / f"{engine.name}.engine"
        if file.exists():
            file.write_text("\n".join(lines))
    return build_on_stand_in(service)


@pytest.mark.parametrize("name", ["flash", "transformer", "masked", "keypoints"])
def test_it_compiles_and_links_and_says_that_there_is_no_gpu(
    name: str,
    export_model: BundleExporter,
    masked_byte_bundle: Bundle,
    build_engines: EngineBuilder,
    tmp_path: Path,
) -> None:
    bundle = masked_byte_bundle if name == "masked" else export_model(name)
    write_standalone(build_engines(bundle, *GRAPHS.get(name, ("forward",))), tmp_path / "service")
    program = build_tensorrt(tmp_path / "service")
    done = call(program)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"Error: usage: flash_model ENGINES ")
    if has_cuda_device():
        pytest.skip("there is a GPU here: the headers of one TensorRT are not to be run with the library of another")
    graph = bundle.get_graph()
    files = [tmp_path / spec.name for spec in (*graph.inputs, *graph.outputs)]
    done = call(program, *(("1", "1") if name in GRAPHS else files))
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    assert done.stderr.startswith(b"Error: CUDA: ")
    assert done.stderr.endswith(b"; an engine needs an NVIDIA GPU with free memory, and its driver\n")


@pytest.mark.parametrize("name", ["flash", "batch-of-3"])
def test_bytes_are_those_of_generate(
    name: str, export_model: BundleExporter, build_engines: EngineBuilder, tmp_path: Path
) -> None:
    program = stand_in(build_engines(export_model(name), *GRAPHS[name]), tmp_path / "service")
    for prompt in draw_prompts(export_model(name), (*LENGTHS, LONG)):
        written = run(program, str(GREEDY.max_tokens), bytes(prompt.tolist()))
        assert [list(written)] == expect(export_model(name), [prompt], GREEDY)


def test_ids_are_those_of_generate(export_model: BundleExporter, build_engines: EngineBuilder, tmp_path: Path) -> None:
    """The state of this model grows."""
    bundle = export_model("transformer")
    program = stand_in(build_engines(bundle, *GRAPHS["transformer"]), tmp_path / "service")
    for prompt in draw_prompts(bundle, LENGTHS):
        written = run(program, str(GREEDY.max_tokens), ",".join(map(str, prompt)))
        assert [[int(line) for line in written.split()]] == expect(bundle, [prompt], GREEDY)


def test_further_prompts_go_on_inside_a_chunk(
    export_model: BundleExporter, build_engines: EngineBuilder, tmp_path: Path
) -> None:
    bundle = export_model("flash")
    program = stand_in(build_engines(bundle, *GRAPHS["flash"]), tmp_path / "service")
    prompts = draw_prompts(bundle, (3, 18, 2))
    state: State | None = None
    expected: list[int] = []
    with Generator.open(bundle) as generator:
        for prompt in prompts:
            result = generator.generate([prompt], SamplingOptions(max_tokens=10), state)
            state, expected = result.state, [*expected, *result.tokens[0].tolist()]
    assert list(run(program, "10", *(bytes(prompt.tolist()) for prompt in prompts))) == expected


def test_a_state_in_half_precision_is_kept(
    export_model: BundleExporter, build_engines: EngineBuilder, tmp_path: Path
) -> None:
    """onnxruntime rounds less often than ``generate``, so that the program for onnxruntime is what to compare with."""
    bundle = build_engines(export_model("fp16"), *GRAPHS["fp16"])
    program = stand_in(bundle, tmp_path / "service")
    write_standalone(export_model("fp16"), tmp_path / "other" / "service")
    other = build_cpp(tmp_path / "other" / "service")
    for prompt in draw_prompts(bundle, LENGTHS):
        arguments = ("40", bytes(prompt.tolist()))
        command: list[str | bytes | Path] = [other, other.parents[2] / "graphs", *arguments]
        expected = subprocess.run(command, capture_output=True, check=True).stdout
        assert len(expected) == 40
        assert run(program, *arguments) == expected


def test_profiles_are_chosen_and_their_ends_are_told(
    export_model: BundleExporter, build_engines: EngineBuilder, tmp_path: Path
) -> None:
    """A segment is as long as the longest profile of prefill takes, and a run has the profile that has room for it."""
    bundle = build_engines(export_model("flash"), "extend", "decode")
    build_engines(bundle, "prefill", profiles=("1x1:1x16:1x20", "1x21:1x24:2x50"))
    program = stand_in(bundle, tmp_path / "service")
    for prompt in draw_prompts(bundle, (*LENGTHS, LONG)):
        written = run(program, str(GREEDY.max_tokens), bytes(prompt.tolist()))
        assert [list(written)] == expect(export_model("flash"), [prompt], GREEDY)
    engine = tmp_path / "service" / "engines" / "prefill.engine"
    engine.write_text("\n".join(line for line in engine.read_text().splitlines() if not line.startswith("profile 1")))
    done = call(program, "1", b"a" * 30)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == (
        "Error: prefill.engine does not take this: profile 0 (input_ids 1x30 is not in 1x1 to 1x20); stay in range, or "
        "build another with 'flash-export trt --profile MIN:OPT:MAX'\n"
    )


def test_what_it_cannot_read_is_told(
    export_model: BundleExporter, build_engines: EngineBuilder, tmp_path: Path
) -> None:
    bundle = build_engines(export_model("transformer"), "prefill")
    build_engines(bundle, "decode", profiles=("1x1:1x16:1x100",))
    program = stand_in(bundle, tmp_path / "service")
    engines = tmp_path / "service" / "engines"
    cases = {
        ("1", "29"): "token 29 is not of the vocabulary, 0 to 28",
        ("1", ",".join(["1"] * 101)): "the text has 101 tokens, the engines take 100 at most",
        ("1", ""): "a prompt has one token at least",
        ("1",): "usage: flash_model ENGINES MAX_TOKENS IDS...",
    }
    for arguments, message in cases.items():
        done = call(program, *arguments)
        assert (done.returncode, done.stdout, done.stderr.decode()) == (1, b"", f"Error: {message}\n")
    (engines / "decode.engine").write_text("of another version")
    done = call(program, "1", "1")
    version = bundle.list_engines()[0].version
    assert (done.returncode, done.stdout, done.stderr.decode()) == (
        1,
        b"",
        f"Error: {engines / 'decode.engine'} cannot be loaded: it is no engine of this version; it was built by "
        f"TensorRT-RTX {version} for compute capability 8.9: run it with these, or build it here with 'flash-export "
        "trt' and write this folder again\n",
    )
    (engines / "decode.engine").unlink()
    assert call(program, "1", "1").stderr.decode() == (
        f"Error: {engines / 'decode.engine'} cannot be read; give their folder\n"
    )


@pytest.mark.parametrize("name", ["masked", "speakers", "keypoints"])
def test_outputs_are_those_of_the_graph(
    name: str,
    export_model: BundleExporter,
    masked_byte_bundle: Bundle,
    build_engines: EngineBuilder,
    tmp_path: Path,
) -> None:
    bundle = build_engines(masked_byte_bundle if name == "masked" else export_model(name), "forward")
    program = stand_in(bundle, tmp_path / "service")
    graph, inputs = bundle.get_graph(), {key: value[:1] for key, value in INPUTS[name].items()}
    for key, value in inputs.items():
        value.tofile(tmp_path / key)
    files = [tmp_path / spec.name for spec in (*graph.inputs, *graph.outputs)]
    assert run(program, *files) == b""
    with OrtRunner(graph, bundle.get_graph_path()) as runner:
        expected = runner.run(inputs)
    for key, value in expected.items():
        found = np.fromfile(tmp_path / key, value.dtype).reshape(value.shape)
        np.testing.assert_allclose(found, value, atol=1e-5 * np.abs(value).max())
    files[0].write_bytes(b"abc")
    done = call(program, *files)
    assert (done.returncode, done.stderr.decode()) == (1, f"Error: {files[0]} has 3 bytes, which is no such tensor\n")


def test_without_engines_of_the_state_it_runs_the_whole_pass(
    export_model: BundleExporter, build_engines: EngineBuilder, tmp_path: Path
) -> None:
    bundle = build_engines(export_model("transformer"), "forward", profiles=("2x1:2x16:2x40",))
    program = stand_in(bundle, tmp_path / "service")
    tokens = np.arange(24).reshape(2, 12)
    tokens.tofile(tmp_path / "ids")
    assert run(program, tmp_path / "ids", tmp_path / "logits") == b""
    with OrtRunner(bundle.get_graph(), bundle.get_graph_path()) as runner:
        expected = runner.run({"input_ids": tokens})["logits"]
    found = np.fromfile(tmp_path / "logits", np.float32).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
