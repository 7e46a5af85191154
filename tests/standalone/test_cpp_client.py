"""The C++ program, compiled and run: greedy texts are those of ``generate``, outputs those of onnxruntime in Python."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest

from flash_export.generation.generate import Generator
from flash_export.generation.sampling import SamplingOptions
from flash_export.runtime.ort import OrtRunner
from flash_export.standalone.standalone import write_standalone
from tests.standalone.examples import GREEDY, INPUTS, LENGTHS, LONG, draw_prompts, expect
from tests.standalone.programs import build_cpp

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle
    from flash_export.generation.state import State
    from tests.standalone.conftest import BundleExporter, FolderMaker

pytestmark = [pytest.mark.client, pytest.mark.timeout(300)]


def run(program: Path, *arguments: str | bytes | Path) -> bytes:
    graphs = program.parents[2] / "graphs"
    done = subprocess.run([program, graphs, *arguments], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


@pytest.mark.parametrize("name", ["flash", "batch-of-3"])
def test_bytes_are_those_of_generate(name: str, export_model: BundleExporter, make_folder: FolderMaker) -> None:
    program = build_cpp(make_folder(name))
    for prompt in draw_prompts(export_model(name), (*LENGTHS, LONG)):
        written = run(program, str(GREEDY.max_tokens), bytes(prompt.tolist()))
        assert [list(written)] == expect(export_model(name), [prompt], GREEDY)


def test_ids_are_those_of_generate(export_model: BundleExporter, make_folder: FolderMaker) -> None:
    """The state of this model grows."""
    program = build_cpp(make_folder("transformer"))
    for prompt in draw_prompts(export_model("transformer"), LENGTHS):
        written = run(program, str(GREEDY.max_tokens), ",".join(map(str, prompt)))
        assert [[int(line) for line in written.split()]] == expect(export_model("transformer"), [prompt], GREEDY)


def test_quantized_ids_are_those_of_generate(token_bundle: Bundle, tmp_path: Path) -> None:
    write_standalone(token_bundle, tmp_path / "service")
    program = build_cpp(tmp_path / "service")
    for prompt in draw_prompts(token_bundle, LENGTHS):
        written = run(program, str(GREEDY.max_tokens), ",".join(map(str, prompt)))
        assert [[int(line) for line in written.split()]] == expect(token_bundle, [prompt], GREEDY)


def test_further_prompts_go_on_inside_a_chunk(export_model: BundleExporter, make_folder: FolderMaker) -> None:
    program, prompts = build_cpp(make_folder("flash")), draw_prompts(export_model("flash"), (3, 18, 2))
    state: State | None = None
    expected: list[int] = []
    with Generator.open(export_model("flash")) as generator:
        for prompt in prompts:
            result = generator.generate([prompt], SamplingOptions(max_tokens=10), state)
            state, expected = result.state, [*expected, *result.tokens[0].tolist()]
    written = run(program, "10", *(bytes(prompt.tolist()) for prompt in prompts))
    assert list(written) == expected


def test_what_it_cannot_read_is_told(make_folder: FolderMaker) -> None:
    program = build_cpp(make_folder("transformer"))
    cases = {
        ("1", "29"): "token 29 is not of the vocabulary, 0 to 28",
        ("1", ",".join(["1"] * 201)): "the text has 201 tokens, the graphs take 200 at most",
        ("1", ""): "a prompt has one token at least",
        ("1",): "usage: flash_model GRAPHS MAX_TOKENS IDS...",
    }
    for arguments, message in cases.items():
        command: list[str | Path] = [program, program.parents[2] / "graphs", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"Error: {message}\n")


@pytest.mark.parametrize("name", ["masked", "speakers", "keypoints"])
def test_outputs_are_those_of_the_graph(
    name: str, export_model: BundleExporter, masked_byte_bundle: Bundle, tmp_path: Path
) -> None:
    bundle = masked_byte_bundle if name == "masked" else export_model(name)
    write_standalone(bundle, tmp_path / "service")
    program = build_cpp(tmp_path / "service")
    graph, inputs = bundle.get_graph(), {key: value[:1] for key, value in INPUTS[name].items()}
    for key, value in inputs.items():
        value.tofile(tmp_path / key)
    files = [tmp_path / spec.name for spec in (*graph.inputs, *graph.outputs)]
    run(program, *files)
    with OrtRunner(graph, bundle.get_graph_path()) as runner:
        expected = runner.run(inputs)
    for key, value in expected.items():
        found = np.fromfile(tmp_path / key, value.dtype).reshape(value.shape)
        np.testing.assert_allclose(found, value, atol=1e-5 * np.abs(value).max())
    files[0].write_bytes(b"abc")
    command = [program, program.parents[2] / "graphs", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"Error: {files[0]} has 3 bytes, which is no such tensor\n")
