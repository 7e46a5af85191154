"""From an fp32 bundle to a quantized one: what is kept of it, what is written down, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from flash_export.bundle.bundle import Bundle
from flash_export.config import QuantizeOptions
from flash_export.errors import BundleError, ConfigError, InputError
from flash_export.exporters.quantization.recipe import ProductRecipe, QuantizationRecipe
from flash_export.exporters.quantization.schemes.registry import SCHEMES_BY_NAME
from flash_export.files import hash_file
from flash_export.generation.generate import Generator
from flash_export.quantization.quantize import quantize_bundle
from flash_export.quantization.search import Choice
from flash_export.runtime.ort import OrtRunner, list_values
from flash_export.tasks.base import Loss

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    SchemeExporter = Callable[[str], Bundle]

pytest.importorskip("onnxruntime")

PRODUCTS = ["layers.0.projection", "layers.0.out", "head"]
STATED = "config.json", "model.safetensors", "heldout.txt", "heldout.json"


def list_contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hash_file(path) for path in folder.rglob("*") if path.is_file()}


def read_logits(bundle: Bundle, input_ids: np.ndarray) -> np.ndarray:
    inputs = {"input_ids": input_ids}
    if bundle.get_graph().has_mask:
        inputs["attention_mask"] = np.ones_like(input_ids)
    with OrtRunner(bundle.get_graph(), bundle.get_graph_path(), threads=1) as runner:
        return runner.run(inputs)["logits"]


def make_ids(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape)


# --- what is made


def test_the_bundle_is_the_same_model_in_every_other_respect(causal_byte_bundle: Bundle, int8_bundle: Bundle) -> None:
    before, after = causal_byte_bundle.manifest, int8_bundle.manifest
    assert after.checkpoint == before.checkpoint
    assert after.model == before.model
    assert list(after.graphs) == list(before.graphs) == ["forward", "prefill", "extend", "decode"]
    for name, graph in after.graphs.items():
        assert graph == dataclasses.replace(before.graphs[name], precision="int8")
    for name in STATED:
        assert after.files[name] == before.files[name], name


def test_options_of_the_export_are_kept(masked_byte_bundle: Bundle, export_scheme: SchemeExporter) -> None:
    """The masked bundle has a mask, and limits of its own."""
    graph = masked_byte_bundle.get_graph()
    assert graph.has_mask
    assert export_scheme("int8").get_graph() == dataclasses.replace(graph, precision="int8")


def test_the_record_says_what_was_done(causal_byte_bundle: Bundle, int8_bundle: Bundle) -> None:
    assert int8_bundle.manifest.files["quantization.json"] == hash_file(int8_bundle.path / "quantization.json")
    record = int8_bundle.read_quantization()
    assert record is not None
    assert json.loads(record.to_json()) == json.loads((int8_bundle.path / "quantization.json").read_text())
    assert (record.scheme, record.data, record.budget, record.block_size) == ("int8", "held-out text", 0.005, None)
    assert record.source_sha256 == hash_file(causal_byte_bundle.path / "manifest.json")
    assert record.data_sha256 == hash_file(causal_byte_bundle.path / "heldout.txt")
    assert record.seq_lens == (96,)
    assert record.predictions == len((causal_byte_bundle.path / "heldout.txt").read_bytes()) // 64 * 63
    assert 0 <= record.loss <= record.budget
    assert record.loss <= record.budget
    assert record.score is not None
    assert record.reference_score is not None
    assert record.reference_score > 1
    assert 0 <= record.measures["kl_bits"] <= record.budget * record.reference_score
    assert [product.name for product in record.products] == PRODUCTS
    assert {product.scheme for product in record.products} == {"int8"}
    assert record.quantized_share == 1
    for product in record.products:
        assert product.sensitivity is None  # nothing had to be chosen
        assert product.activation_max is not None
        assert product.error is not None
        assert 0 < product.error < 0.05


def test_weights_take_a_quarter(causal_byte_bundle: Bundle, int8_bundle: Bundle) -> None:
    record = int8_bundle.read_quantization()
    assert record is not None
    assert causal_byte_bundle.read_quantization() is None
    tensors = onnx.load(int8_bundle.get_graph_path()).graph.initializer
    int8 = [tensor for tensor in tensors if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2]
    assert sum(len(tensor.raw_data) for tensor in int8) == sum(product.weights for product in record.products)
    left = {"embedding.table", *(f"{product.name}.weight" for product in record.products)}
    left |= {f"{product.name}_weight" for product in record.products}
    assert left.isdisjoint(tensor.name for tensor in tensors)


def test_int8_in_bf16_is_int8_where_int8_is_and_bf16_elsewhere(
    causal_byte_bundle: Bundle, int8_bundle: Bundle, int8_bf16_bundle: Bundle
) -> None:
    for name, graph in int8_bf16_bundle.manifest.graphs.items():
        assert (graph.precision, graph.unquantized, graph.is_half) == ("int8", "bf16", True)
        assert graph.label == "int8, the rest bf16"
        assert int8_bundle.manifest.graphs[name].label == "int8"
        assert not int8_bundle.manifest.graphs[name].is_half
    facts = int8_bf16_bundle.manifest.precision
    assert facts is not None
    assert facts.precision == "bf16"
    assert int8_bf16_bundle.manifest.checkpoint == causal_byte_bundle.manifest.checkpoint
    tensors = {}
    for bundle in (int8_bundle, int8_bf16_bundle):
        found = onnx.load(bundle.get_graph_path()).graph.initializer
        tensors[bundle.path] = {one.name: one for one in found}
    plain, half = tensors.values()
    quantized = [name for name in plain if name.endswith("weight_quantized")]
    assert len(quantized) == len(PRODUCTS)
    for name in quantized:  # rounded from the fp32 weights, not from what bf16 has left of them
        assert half[name].raw_data == plain[name].raw_data
    assert {onnx.TensorProto.BFLOAT16} == {
        half[name].data_type for name in ("embedding.table", "layers.0.projection.bias")
    }
    ids = make_ids(2, 90)
    expected, found = read_logits(int8_bundle, ids), read_logits(int8_bf16_bundle, ids)
    scale = np.abs(expected).max()
    assert 1e-4 * scale < np.abs(found - expected).max() < 0.03 * scale, "what is not quantized is rounded to bf16"


def test_every_probe_is_a_value_of_the_graph(
    int8_bundle: Bundle, int8_bf16_bundle: Bundle, export_scheme: SchemeExporter
) -> None:
    for bundle in (int8_bundle, int8_bf16_bundle, *map(export_scheme, ("int8-token", "int4", "fp8"))):
        values = {probe.tensor for probe in bundle.read_probes().probes}
        assert len(values) > 10
        assert values - list_values(bundle.get_graph_path()) == set()


@pytest.mark.parametrize("name", ["int8_bundle", "token_bundle", "int8_bf16_bundle"])
def test_prefill_and_decode_say_what_forward_does(
    name: str, causal_byte_bundle: Bundle, request: pytest.FixtureRequest
) -> None:
    bundle, ids = request.getfixturevalue(name), make_ids(2, 30)
    forward, exact = read_logits(bundle, ids), read_logits(causal_byte_bundle, ids)
    scale = np.abs(exact).max()
    assert 1e-5 * scale < np.abs(forward - exact).max() < 0.05 * scale
    rounding = (0.02 if bundle.get_graph().is_half else 0.01) * scale
    with Generator.open(bundle, threads=1) as generator:
        logits, state = generator.prefill([row[:19] for row in ids])
        np.testing.assert_allclose(logits, forward[:, 18], rtol=0, atol=rounding)
        for position in range(19, 30):
            logits, state = generator.prefill([row[position : position + 1] for row in ids], state)
            np.testing.assert_allclose(logits, forward[:, position], rtol=0, atol=rounding)


def test_the_graphs_of_the_bundle_are_rewritten_without_pytorch(masked_byte_bundle: Bundle, tmp_path: Path) -> None:
    code = """
        import sys
        sys.modules["torch"] = None
        from flash_export import Bundle
        from flash_export.quantization.quantize import quantize_bundle
        quantize_bundle(Bundle.open(sys.argv[1]), sys.argv[2])
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(masked_byte_bundle.path), str(tmp_path / "out")]
    subprocess.run(command, check=True)
    bundle = Bundle.open(tmp_path / "out")
    scale = np.abs(exact := read_logits(masked_byte_bundle, make_ids(2, 30))).max()
    assert np.abs(read_logits(bundle, make_ids(2, 30)) - exact).max() < 0.05 * scale
    assert bundle.read_probes() == masked_byte_bundle.read_probes()


@pytest.mark.slow
def test_int4_raises_the_opset_and_gives_the_same_bytes_again(masked_byte_bundle: Bundle, tmp_path: Path) -> None:
    options = QuantizeOptions("int4", budget=0.5, threads=1, keep=("he*",))
    steps: list[tuple[int, int, str]] = []
    first, second = (
        quantize_bundle(masked_byte_bundle, tmp_path / name, options=options, progress=lambda *step: steps.append(step))
        for name in "ab"
    )
    assert masked_byte_bundle.get_graph().opset == 20
    assert first.get_graph() == dataclasses.replace(masked_byte_bundle.get_graph(), precision="int4", opset=21)
    assert first.manifest.files == second.manifest.files
    assert list_contents(first.path) == list_contents(second.path)

    record = first.read_quantization()
    assert record is not None
    assert record.block_size == 32
    products = {product.name: product for product in record.products}
    assert (products["head"].scheme, products["head"].reason) == ("fp32", "--keep he*")
    assert products["head"].sensitivity is products["head"].error is None
    out = products["layers.0.out"]
    assert (out.scheme, out.reason) == ("fp32", "its 48 inputs are no multiple of the block of 32")
    assert products["layers.0.projection"].scheme == "int4"
    assert 0 < record.quantized_share < 1
    assert steps[0][:2] == (0, 4)
    assert all(done < total for done, total, _ in steps)
    assert [label for *_, label in steps if label in PRODUCTS] == 2 * PRODUCTS[:1]
    model = onnx.load(first.get_graph_path())
    assert "head.weight" in {tensor.name for tensor in model.graph.initializer}


def test_a_scale_for_each_token_needs_no_data(
    causal_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle has none; what is random is drawn alike again."""
    monkeypatch.setattr("flash_export.quantization.quantize.record_activations", lambda *_: pytest.fail("calibrated"))
    options = QuantizeOptions(threads=1)
    first, second = (quantize_bundle(causal_bundle, tmp_path / name, options=options) for name in "ab")
    record = first.read_quantization()
    assert record is not None
    assert (record.scheme, record.data, record.seq_lens, record.score) == ("int8-token", "random tokens", (), None)
    assert 0 < record.loss <= record.budget
    assert {(product.scheme, product.error, product.activation_max) for product in record.products} == {
        ("int8-token", None, None)
    }
    assert list_contents(first.path) == list_contents(second.path)
    with pytest.raises(InputError, match="has no held-out data to calibrate with; give data that the model would see"):
        quantize_bundle(causal_bundle, tmp_path / "c", options=QuantizeOptions("int8"))


# --- what is refused


def test_a_pattern_that_names_nothing_is_refused(masked_byte_bundle: Bundle, tmp_path: Path) -> None:
    patterns = ("head", "layers.7.*")
    with pytest.raises(ConfigError, match=r"keep='layers.7.\*' names nothing; the products are layers.0.projection, l"):
        quantize_bundle(masked_byte_bundle, tmp_path / "out", options=QuantizeOptions(keep=patterns))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_only_fp32_is_quantized(masked_byte_bundle: Bundle, tmp_path: Path, precision: str) -> None:
    graph = dataclasses.replace(masked_byte_bundle.get_graph(), precision=precision)
    bundle = dataclasses.replace(
        masked_byte_bundle, manifest=dataclasses.replace(masked_byte_bundle.manifest, graphs={"forward": graph})
    )
    with pytest.raises(ConfigError, match=f"is {precision}; quantize the fp32 bundle that it was made from"):
        quantize_bundle(bundle, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_output_that_is_there_is_refused_before_any_work(
    masked_byte_bundle: Bundle, int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundle, "load_model", lambda _: pytest.fail("work was done"))
    with pytest.raises(BundleError, match="already holds a bundle; add --force"):
        quantize_bundle(masked_byte_bundle, int8_bundle.path)


def test_a_failure_leaves_the_output_as_it_was(
    masked_byte_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object, folder: Path) -> None:
        (folder / "model.onnx").write_bytes(b"half a graph")
        raise InputError("on purpose")

    output = tmp_path / "out"
    shutil.copytree(masked_byte_bundle.path, output)
    before = list_contents(output)
    int8 = SCHEMES_BY_NAME["int8"]
    recipe = QuantizationRecipe(int8, {"head": ProductRecipe(int8, 1.0)})
    choice = Choice(recipe, Loss(0.0, None, 1.0), {}, {}, {})
    monkeypatch.setattr("flash_export.quantization.search.Search.run", lambda *_: choice)
    monkeypatch.setattr("flash_export.exporters.quantization.bundle.write_models", fail)
    with pytest.raises(InputError, match="on purpose"):
        quantize_bundle(masked_byte_bundle, output, options=QuantizeOptions("int8", threads=1), force=True)
    assert list_contents(output) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_weights_that_are_linked_are_refused_in_one_line(causal_byte_bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(causal_byte_bundle.path, tmp_path / "bundle")
    (tmp_path / "other").hardlink_to(tmp_path / "bundle" / "model.onnx.data")
    with pytest.raises(
        BundleError, match=r"model\.onnx cannot be read \(.*hard link.*\); make a copy of the bundle"
    ) as error:
        quantize_bundle(Bundle.open(tmp_path / "bundle"), tmp_path / "out", options=QuantizeOptions(threads=1))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_bundle_is_not_its_own_output(masked_byte_bundle: Bundle) -> None:
    before = list_contents(masked_byte_bundle.path)
    with pytest.raises(ConfigError, match="is the bundle itself, which would be lost; choose another folder"):
        quantize_bundle(masked_byte_bundle, masked_byte_bundle.path)
    assert list_contents(masked_byte_bundle.path) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (QuantizeOptions("int4", block_size=1024), r"can be int4 \(layers.0.projection: its 32 inputs are no multiple"),
        (QuantizeOptions(keep=("*",)), r"can be int8-token \(layers.0.projection: --keep \*\); take --keep back"),
        (
            QuantizeOptions(budget=1e-12),
            r"budget=1e-12 leaves no product in int8-token: .* at least .*; raise --budget",
        ),
    ],
)
def test_a_bundle_with_nothing_in_few_bits_is_not_written(
    masked_byte_bundle: Bundle, tmp_path: Path, options: QuantizeOptions, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        quantize_bundle(masked_byte_bundle, tmp_path / "out", options=dataclasses.replace(options, threads=1))
    assert not list(tmp_path.iterdir())
