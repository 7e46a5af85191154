"""``model.py`` on numpy and onnxruntime alone: what it writes is what ``generate`` writes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from flash_export.generation.generate import Generator
from flash_export.generation.sampling import SamplingOptions
from flash_export.runtime.ort import OrtRunner
from flash_export.standalone.standalone import write_standalone
from tests.standalone.examples import GREEDY, INPUTS, LENGTHS, LONG, draw_prompts, expect
from tests.standalone.isolated import run_program, run_python

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle
    from tests.standalone.conftest import BundleExporter, FolderMaker

DRAWN = (
    SamplingOptions(max_tokens=40, temperature=1.5, seed=7),
    SamplingOptions(max_tokens=40, temperature=0.9, top_k=9, top_p=0.8, repetition_penalty=1.3, seed=3),
)


def write(folder: Path, prompts: list[np.ndarray], options: SamplingOptions) -> list[list[int]]:
    """Let the standalone file go on from prompts."""
    code = f"""
import json
from model import Model
prompts = {[prompt.tolist() for prompt in prompts]}
written = [[] for _ in prompts]
for row, token in Model(threads=1).generate(prompts, **{vars(options)}):
    written[row].append(token)
print(json.dumps(written))
"""
    done = run_python(folder, code)
    assert done.returncode == 0, done.stderr.decode()
    found: list[list[int]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", ["flash", "transformer"])
def test_texts_depend_on_their_first_token(name: str, export_model: BundleExporter) -> None:
    """What programs are compared by can tell whether they carry the past on."""
    prompts = draw_prompts(export_model(name), LENGTHS)
    texts = expect(export_model(name), prompts, GREEDY)
    assert min(len(set(text)) for text in texts) > 3
    for prompt in prompts:
        prompt[0] = prompt[0] % 28 + 1
    others = expect(export_model(name), prompts, GREEDY)
    assert all(text != other for text, other in zip(texts, others, strict=True))


@pytest.mark.parametrize("options", [GREEDY, *DRAWN])
@pytest.mark.parametrize("name", ["flash", "transformer", "batch-of-3"])
def test_it_writes_what_generate_writes(
    name: str, options: SamplingOptions, export_model: BundleExporter, make_folder: FolderMaker
) -> None:
    prompts = draw_prompts(export_model(name), LENGTHS)
    assert write(make_folder(name), prompts, options) == expect(export_model(name), prompts, options)


def test_rows_end_at_their_stop_tokens(export_model: BundleExporter, make_folder: FolderMaker) -> None:
    prompts = draw_prompts(export_model("flash"), LENGTHS)
    free = expect(export_model("flash"), prompts, DRAWN[0])
    options = SamplingOptions(max_tokens=40, temperature=1.5, seed=7, stop_tokens=(free[0][4], free[2][9]))
    expected = expect(export_model("flash"), prompts, options)
    assert len({len(tokens) for tokens in expected}) > 1
    assert write(make_folder("flash"), prompts, options) == expected


def test_a_prompt_of_several_segments(export_model: BundleExporter, make_folder: FolderMaker) -> None:
    prompts = draw_prompts(export_model("flash"), (LONG,))
    assert write(make_folder("flash"), prompts, GREEDY) == expect(export_model("flash"), prompts, GREEDY)


def test_a_text_goes_on_inside_a_chunk(make_folder: FolderMaker) -> None:
    code = """
import numpy as np
from model import Model
model = Model()
tokens = np.arange(60)
whole = model.forward(tokens[None])["logits"][:, -1]
logits, state = model.read(tokens[:13])
for first, last in ((13, 17), (17, 18), (18, 59)):
    logits, state = model.read(tokens[first:last], state)
logits, state = model.decode(tokens[59:], state)
print(np.abs(logits - whole).max() / np.abs(whole).max())
"""
    done = run_python(make_folder("flash"), code)
    assert done.returncode == 0, done.stderr.decode()
    assert float(done.stdout) < 1e-5


def test_the_program_reads_and_writes_bytes(export_model: BundleExporter, make_folder: FolderMaker) -> None:
    options = ("--max-tokens", "30", "--temperature", "1", "--seed", "5")
    done = run_program(make_folder("flash"), "--prompt", "né", *options)
    prompt = np.frombuffer("né".encode(), np.uint8).astype(np.int64)
    expected = expect(export_model("flash"), [prompt], SamplingOptions(max_tokens=30, temperature=1, seed=5))
    assert (done.returncode, done.stderr) == (0, b"")
    assert list(done.stdout) == expected[0]


def test_the_program_reads_and_writes_ids(export_model: BundleExporter, make_folder: FolderMaker) -> None:
    done = run_program(make_folder("transformer"), "--tokens", "3,28,1", "--max-tokens", "30")
    expected = expect(export_model("transformer"), [np.array([3, 28, 1])], SamplingOptions(max_tokens=30))
    assert (done.returncode, done.stderr) == (0, b"")
    assert [int(line) for line in done.stdout.split()] == expected[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("list(Model().generate([[29]]))", "wanted one token id at least, each from 0 to 28"),
        ("list(Model().generate([[]]))", "wanted one token id at least, each from 0 to 28"),
        ("Model().read([1] * 201)", "the text has 201 tokens, the graphs take 200 at most"),
        ("choose(np.full((1, 29), np.nan), np.zeros((1, 29), bool), np.zeros(1))", "the logits hold NaN or infinite"),
    ],
)
def test_what_it_cannot_read_is_told(call: str, message: str, make_folder: FolderMaker) -> None:
    done = run_python(make_folder("transformer"), f"import numpy as np\nfrom model import Model, choose\n{call}")
    assert done.returncode == 1
    assert f"ValueError: {message}" in done.stderr.decode()


@pytest.mark.parametrize("scheme", ["int8", "int8-token"])
def test_quantized_models_write_what_generate_writes(
    scheme: str, int8_bundle: Bundle, token_bundle: Bundle, tmp_path: Path
) -> None:
    bundle = int8_bundle if scheme == "int8" else token_bundle
    assert bundle.get_graph().precision == scheme
    write_standalone(bundle, tmp_path / "service")
    prompts = draw_prompts(bundle, LENGTHS)
    assert write(tmp_path / "service", prompts, DRAWN[0]) == expect(bundle, prompts, DRAWN[0])


def test_half_precision_is_as_close_as_it_rounds(export_model: BundleExporter, make_folder: FolderMaker) -> None:
    """onnxruntime rounds less often than ``generate``, which rounds as a GPU does."""
    (prompt,) = draw_prompts(export_model("fp16"), (21,))
    code = f"""
from model import Model
logits, state = Model().read({prompt.tolist()})
assert state["state.0.v"].dtype == "float16"
sys.stdout.buffer.write(logits.tobytes())
"""
    done = run_python(make_folder("fp16"), code)
    assert done.returncode == 0, done.stderr.decode()
    with Generator.open(export_model("fp16")) as generator:
        expected, _ = generator.prefill([prompt])
    error = np.abs(np.frombuffer(done.stdout, np.float32) - expected[0]).max() / np.abs(expected).max()
    assert error < 8 * np.finfo(np.float16).eps


@pytest.mark.parametrize("name", INPUTS)
def test_models_without_a_state_have_the_whole_pass(
    name: str, export_model: BundleExporter, masked_byte_bundle: Bundle, tmp_path: Path
) -> None:
    bundle = masked_byte_bundle if name == "masked" else export_model(name)
    write_standalone(bundle, tmp_path / "service")
    inputs: dict[str, Any] = INPUTS[name]
    np.savez(tmp_path / "inputs.npz", **inputs)
    done = run_program(tmp_path / "service", str(tmp_path / "inputs.npz"), str(tmp_path / "outputs.npz"))
    assert (done.returncode, done.stderr) == (0, b"")
    with OrtRunner(bundle.get_graph(), bundle.get_graph_path()) as runner:
        expected = runner.run(INPUTS[name])
    with np.load(tmp_path / "outputs.npz") as outputs:
        assert {*outputs.files} == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(outputs[key], value, atol=1e-5 * np.abs(value).max())


@pytest.mark.parametrize("mask", [[0, 1, 1], [1, 0, 1]])
def test_padding_that_is_not_on_the_right_is_refused(
    mask: list[int], masked_byte_bundle: Bundle, tmp_path: Path
) -> None:
    write_standalone(masked_byte_bundle, tmp_path / "service")
    np.savez(
        tmp_path / "inputs.npz", input_ids=np.array([[1, 2, 3], [4, 5, 6]]), attention_mask=np.array([[1, 1, 0], mask])
    )
    done = run_program(tmp_path / "service", str(tmp_path / "inputs.npz"), str(tmp_path / "outputs.npz"))
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == (
        "ValueError: attention_mask has a 1 behind a 0; put padding on the right, else answers are wrong"
    )


@pytest.mark.parametrize("name", ["flash", "transformer", "batch-of-3", "forward"])
def test_it_is_short_and_fits_the_page(name: str, make_folder: FolderMaker) -> None:
    lines = (make_folder(name) / "model.py").read_text().splitlines()
    assert max(map(len, lines)) <= 120
    # A state that grows has to be given room, and a fixed batch to be filled: that comes on top.
    assert len(lines) < (150 if name in ("flash", "forward") else 175)
