"""The JavaScript module in Node, and the page in a browser: greedy texts are those of ``generate``."""

from __future__ import annotations

import codecs
import functools
import html
import json
import re
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import numpy as np
import pytest

from flash_export.generation.generate import Generator
from flash_export.generation.sampling import SamplingOptions
from flash_export.runtime.ort import OrtRunner
from flash_export.standalone.standalone import write_standalone
from tests.standalone.examples import GREEDY, INPUTS, LENGTHS, LONG, draw_prompts, expect
from tests.standalone.programs import find_browser, link_node_modules, run_node
from tests.validators.report.browser import browse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle
    from tests.conftest import SchemeExporter
    from tests.standalone.conftest import BundleExporter, FolderMaker

pytestmark = [pytest.mark.client, pytest.mark.timeout(300)]


def write(service: Path, prompts: list[np.ndarray], options: SamplingOptions) -> list[list[int]]:
    """Let the module go on from each prompt."""
    code = f"""
import {{ Model }} from "./model.mjs";
const model = new Model();
const texts = [];
for (const prompt of {[prompt.tolist() for prompt in prompts]}) {{
  const options = {{ maxTokens: {options.max_tokens}, stopTokens: {list(options.stop_tokens)} }};
  texts.push([]);
  for await (const token of model.generate(prompt, options)) texts.at(-1).push(token);
}}
console.log(JSON.stringify(texts));
"""
    found: list[list[int]] = json.loads(run_node(service, code))
    return found


@pytest.mark.parametrize("name", ["flash", "transformer", "batch-of-3"])
def test_it_writes_what_generate_writes(name: str, export_model: BundleExporter, make_folder: FolderMaker) -> None:
    bundle = export_model(name)
    prompts = draw_prompts(bundle, LENGTHS if name == "transformer" else (*LENGTHS, LONG))
    expected = [expect(bundle, [prompt], GREEDY)[0] for prompt in prompts]
    assert write(make_folder(name), prompts, GREEDY) == expected


def test_a_text_goes_on_inside_a_chunk(make_folder: FolderMaker) -> None:
    code = """
import * as ort from "onnxruntime-web";
import { Model } from "./model.mjs";
const model = new Model();
const tokens = Array.from({ length: 60 }, (_, index) => index);
const input = new ort.Tensor("int64", BigInt64Array.from(tokens, BigInt), [1, 60]);
const whole = (await model.forward(input)).logits.data.slice(-256);
let state, logits;
for (const [first, last] of [[0, 13], [13, 17], [17, 18], [18, 60]]) {
  ({ logits, state } = await model.read(tokens.slice(first, last), state));
}
console.log(JSON.stringify([Array.from(whole), Array.from(logits)]));
"""
    whole, logits = map(np.array, json.loads(run_node(make_folder("flash"), code)))
    assert np.abs(logits - whole).max() < 1e-5 * np.abs(whole).max()


def test_it_ends_at_a_stop_token(export_model: BundleExporter, make_folder: FolderMaker) -> None:
    prompts = draw_prompts(export_model("flash"), (5,))
    (free,) = expect(export_model("flash"), prompts, GREEDY)
    options = SamplingOptions(max_tokens=40, stop_tokens=(free[7],))
    assert write(make_folder("flash"), prompts, options) == [free[: free.index(free[7]) + 1]]


def read(service: Path, prompt: np.ndarray) -> tuple[str, np.ndarray]:
    """Let the module read a prompt; return the dtype of a value of the state, and the logits."""
    code = f"""
import {{ Model }} from "./model.mjs";
const {{ logits, state }} = await new Model().read({prompt.tolist()});
console.log(JSON.stringify([state["state.0.v"].type, Array.from(logits)]));
"""
    dtype, logits = json.loads(run_node(service, code))
    return dtype, np.array(logits)


def test_half_precision_is_as_close_as_it_rounds(export_model: BundleExporter, make_folder: FolderMaker) -> None:
    (prompt,) = draw_prompts(export_model("fp16"), (21,))
    dtype, logits = read(make_folder("fp16"), prompt)
    with Generator.open(export_model("fp16")) as generator:
        expected, _ = generator.prefill([prompt])
    assert dtype == "float16"
    assert np.abs(logits - expected[0]).max() < 8 * np.finfo(np.float16).eps * np.abs(expected).max()


def test_quantized_logits_are_those_of_generate(token_bundle: Bundle, tmp_path: Path) -> None:
    write_standalone(token_bundle, tmp_path / "service")
    (prompt,) = draw_prompts(token_bundle, (21,))
    _, logits = read(tmp_path / "service", prompt)
    with Generator.open(token_bundle) as generator:
        expected, _ = generator.prefill([prompt])
    assert np.abs(logits - expected[0]).max() < 1e-5 * np.abs(expected).max()


def test_what_it_cannot_read_is_told(make_folder: FolderMaker) -> None:
    code = """
import { Model } from "./model.mjs";
const model = new Model();
for (const prompt of [[29], [], [0.5], Array(201).fill(1)]) {
  await model.read(prompt).then(() => console.log("read"), (error) => console.log(error.message));
}
"""
    refused = "wanted one token id at least, each from 0 to 28"
    told = [*[refused] * 3, "the text has 201 tokens, the graphs take 200 at most"]
    assert run_node(make_folder("transformer"), code).splitlines() == told


@pytest.mark.parametrize("name", ["forward", "masked", "fp8", "speakers", "keypoints"])
def test_outputs_are_those_of_the_graph(
    name: str,
    export_model: BundleExporter,
    export_scheme: SchemeExporter,
    masked_byte_bundle: Bundle,
    tmp_path: Path,
) -> None:
    bundle = masked_byte_bundle if name == "masked" else export_scheme(name) if name == "fp8" else export_model(name)
    inputs = INPUTS["masked" if name == "fp8" else name]
    write_standalone(bundle, tmp_path / "service")
    arguments = [
        f"new ort.Tensor({value.dtype.name!r}, {'BigInt64Array' if value.dtype == np.int64 else 'Float32Array'}"
        f".from({value.ravel().tolist()}{', BigInt' if value.dtype == np.int64 else ''}), {list(value.shape)})"
        for value in inputs.values()
    ]
    code = f"""
import * as ort from "onnxruntime-web";
import {{ Model }} from "./model.mjs";
const outputs = await new Model().forward({", ".join(arguments)});
console.log(JSON.stringify(Object.entries(outputs).map(([name, one]) => [name, one.dims, Array.from(one.data)])));
"""
    found = {
        key: np.array(values).reshape(dims) for key, dims, values in json.loads(run_node(tmp_path / "service", code))
    }
    with OrtRunner(bundle.get_graph(), bundle.get_graph_path()) as runner:
        expected = runner.run(inputs)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=1e-5 * np.abs(value).max())


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def run_page(service: Path) -> tuple[str, str]:
    """Let the page run at once; return what it shows as output, and its status."""
    find_browser()
    link_node_modules(service)
    with serve(service) as address:
        # Virtual time goes on when nothing is to be done, and the page is printed when it is over.
        document = browse(f"{address}/web/?run", service.parent, "--virtual-time-budget=60000", "--dump-dom")
    output = re.search(r"<output>(.*)</output>", document, re.DOTALL)
    status = re.search(r'<p id="status">(.*?)</p>', document)
    assert output
    assert status
    return html.unescape(output[1]), html.unescape(status[1])


def test_the_page_writes_ids(export_model: BundleExporter, make_folder: FolderMaker) -> None:
    output, status = run_page(make_folder("transformer"))
    (expected,) = expect(export_model("transformer"), [np.array([1, 2, 3])], SamplingOptions(max_tokens=100))
    assert [int(word) for word in output.split()] == expected
    assert status.startswith("Done: 100 tokens, ")


def test_the_page_writes_text(export_model: BundleExporter, make_folder: FolderMaker) -> None:
    output, status = run_page(make_folder("flash"))
    prompt = np.frombuffer(b"def main(", np.uint8).astype(np.int64)
    (expected,) = expect(export_model("flash"), [prompt], SamplingOptions(max_tokens=100))
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(bytes(expected))
    assert output.split() == text.split()  # a browser may print line ends of its own
    assert status.startswith("Done: 100 tokens, ")


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("masked", {"logits": (1, 16, 257)}),
        ("speakers", {"sources": (1, 2, 68)}),
        ("keypoints", {"simcc_x": (1, 17, 48), "simcc_y": (1, 17, 64)}),
    ],
)
def test_the_page_runs_models_without_a_state(
    name: str,
    shapes: dict[str, tuple[int, ...]],
    export_model: BundleExporter,
    masked_byte_bundle: Bundle,
    tmp_path: Path,
) -> None:
    write_standalone(masked_byte_bundle if name == "masked" else export_model(name), tmp_path / "service")
    output, status = run_page(tmp_path / "service")
    lines = output.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [f"{key} float32 {shape}" for key, shape in shapes.items()]
    assert all(np.isfinite(float(line.partition(": ")[2].partition(",")[0])) for line in lines)
    assert status.startswith("Done in ")
