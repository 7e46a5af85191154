"""Quantized graphs keep the promises, mean what ONNX says, and are what runtimes have fast products for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from flash_export.config import SCHEMES, ExportOptions
from flash_export.exporters.export import export_onnx
from flash_export.exporters.promises import check_promises
from flash_export.exporters.quantization.bundle import write_quantized
from flash_export.exporters.quantization.numbers import INT8
from flash_export.exporters.quantization.products import list_products, name_product
from flash_export.exporters.quantization.recipe import ProductRecipe, QuantizationRecipe
from flash_export.exporters.quantization.schemes.registry import SCHEMES_BY_NAME
from flash_export.models.flash import FlashConfig, FlashModel
from tests.exporters.quantization.builders import count_fused, measure_error, quantize_product, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import onnx_ir as ir

    from flash_export.exporters.quantization.source import SourceGraph, SourceProduct

    ProductWriter = Callable[..., ir.Model]

pytest.importorskip("onnxruntime")

BLOCK_SIZE = 16
WAYS = (*SCHEMES, "int8-smoothed", "int8-two-terms", "int8-token-two-terms")
# What onnxruntime makes of a product by each scheme; it has no fp8 product on the CPU.
FUSED = {"int8-token": "MatMulIntegerToFloat", "int8": "MatMulIntegerToFloat", "int4": "MatMulNBits"}


class Exported(Protocol):
    """See conftest.py."""

    source: SourceGraph

    def make_inputs(self, seq_len: int) -> dict[str, np.ndarray]: ...


class Pad(OpRun):
    """The reference implementation has no negative pads, which cut; the token shift has one."""

    op_domain = ""

    def _run(self, x: Any, pads: Any, value: Any = None, axes: Any = None, mode: Any = None) -> tuple[np.ndarray]:
        assert mode in (None, "constant")
        axes = range(x.ndim) if axes is None else axes
        for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
            x = np.take(x, np.arange(max(-before, 0), x.shape[axis] - max(-after, 0)), axis=axis)
            widths = [(0, 0)] * x.ndim
            widths[axis] = max(before, 0), max(after, 0)
            x = np.pad(x, widths, constant_values=0 if value is None else value)
        return (x,)


def make_recipe(way: str, inputs: int, activation_max: float = 12.0) -> ProductRecipe:
    scheme = SCHEMES_BY_NAME[way.removesuffix("-smoothed").removesuffix("-two-terms")]
    smoothing = np.geomspace(0.5, 2, inputs, dtype=np.float32) if way.endswith("smoothed") else None
    terms = 2 if way.endswith("terms") else 1
    known = activation_max if scheme.has_range else None
    return ProductRecipe(scheme, known, smoothing, terms, BLOCK_SIZE if scheme.has_blocks else None)


def plan_all(way: str, products: tuple[SourceProduct, ...]) -> QuantizationRecipe:
    recipes = {product.name: make_recipe(way, len(product.weight)) for product in products}
    return QuantizationRecipe(recipes["head"].scheme, recipes)


def list_value_names(path: Path) -> set[str]:
    return {name for node in onnx.load(path, load_external_data=False).graph.node for name in node.output}


# --- whole graphs


@pytest.mark.parametrize("way", WAYS)
def test_a_quantized_graph_keeps_the_promises_and_what_its_values_are_called(
    exported: Exported, way: str, tmp_path: Path
) -> None:
    (tmp_path / "plain").mkdir()
    plain = exported.source.write(tmp_path / "plain")
    path = exported.source.write(tmp_path, plan_all(way, exported.source.products))

    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    assert {value.name for value in model.graph.value_info}, "nothing was inferred, so that no size can be checked"
    check_promises(model, exported.source.graph.inputs, exported.source.graph.outputs)
    assert {opset.domain for opset in model.opset_import} == {""}
    assert list_value_names(plain) - list_value_names(path) == set()
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)


@pytest.mark.parametrize(
    "scheme", ["int8", *(pytest.param(scheme, marks=pytest.mark.slow) for scheme in SCHEMES if scheme != "int8")]
)
@pytest.mark.parametrize(
    "chunk_size", [7, *(pytest.param(size, marks=pytest.mark.slow) for size in range(1, 17) if size != 7)]
)
def test_no_size_of_a_short_chunk_is_taken_for_a_traced_one(chunk_size: int, scheme: str, tmp_path: Path) -> None:
    """Tables by distance have ``2 * chunk_size - 1`` entries and are read at positions near the chunk size."""
    config = FlashConfig(40, dim=32, depth=1, hidden_dim=32, chunk_size=chunk_size, qk_dim=16, causal=True)
    FlashModel(config).save_pretrained(tmp_path / "checkpoint")
    names = ("layers.0.projection", "layers.0.out", "head")
    recipe = QuantizationRecipe(SCHEMES_BY_NAME[scheme], {name: make_recipe(scheme, config.dim) for name in names})
    options = ExportOptions(opset=21, graphs=("forward",))
    plain = export_onnx(tmp_path / "checkpoint", tmp_path / "plain", options=options)
    bundle = write_quantized(plain, tmp_path / "bundle", recipe, "{}")
    graph = onnx.load(bundle.get_graph_path(), load_external_data=False)
    assert (graph.ir_version, graph.opset_import[0].version) == (10, 21)
    tables = [tensor.dims for tensor in graph.graph.initializer if tensor.name.endswith("bias_by_distance")]
    assert tables == [[2 * chunk_size - 1]]


@pytest.mark.parametrize("way", WAYS)
def test_onnxruntime_computes_what_the_reference_does(exported: Exported, way: str, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    inputs = exported.make_inputs(19)
    exact = run(exported.source.write(tmp_path / "plain"), inputs)
    path = exported.source.write(tmp_path, plan_all(way, exported.source.products))
    (expected,) = ReferenceEvaluator(onnx.load(path), new_ops=[Pad]).run(None, inputs)
    found = run(path, inputs)

    cost = np.abs(expected - exact).max()
    assert 0 < cost < 0.5 * np.abs(exact).max()
    # The last bit of a sum decides which way the next activation is rounded, one step in one of its channels.
    assert np.sqrt(np.square(found - expected).mean()) < 0.2 * np.sqrt(np.square(expected - exact).mean())


@pytest.mark.parametrize("scheme", FUSED)
def test_onnxruntime_has_a_product_in_few_bits_for_every_one(exported: Exported, scheme: str, tmp_path: Path) -> None:
    products = exported.source.products
    path = exported.source.write(tmp_path, plan_all(scheme, products))
    found = count_fused(path, tmp_path)
    assert found[FUSED[scheme]] == len(products) == 3
    assert found["DequantizeLinear"] == found["Gemm"] == found["MatMulInteger"] == 0


@pytest.mark.parametrize("scheme", ["int8", "int8-token"])
def test_two_terms_are_one_product_in_few_bits(exported: Exported, scheme: str, tmp_path: Path) -> None:
    products = exported.source.products
    found = count_fused(exported.source.write(tmp_path, plan_all(f"{scheme}-two-terms", products)), tmp_path)
    assert found["MatMulIntegerToFloat"] == len(products)
    assert found["DequantizeLinear"] == found["Gemm"] == 0


def test_what_the_plan_does_not_name_stays_as_it_is(exported: Exported, tmp_path: Path) -> None:
    head = {"head": make_recipe("int8", 32)}
    path = exported.source.write(tmp_path, QuantizationRecipe(SCHEMES_BY_NAME["int8"], head))
    model = onnx.load(path)
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for product in exported.source.products:
        weight = next((w for name, w in weights.items() if name_product(name) == product.name), None)
        if product.name == "head":
            assert weight is None
        else:
            np.testing.assert_array_equal(weight, product.weight)


def test_writing_one_way_changes_nothing_of_the_next(exported: Exported, tmp_path: Path) -> None:
    contents = []
    for index, way in enumerate((None, "int8-smoothed", "int4", None)):
        folder = tmp_path / str(index)
        folder.mkdir()
        exported.source.write(folder, None if way is None else plan_all(way, exported.source.products))
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[3] != contents[1]


# --- one product


def make_product(seed: int = 0, k: int = 64, n: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((50, k)).astype(np.float32), rng.standard_normal((k, n)).astype(np.float32)


@pytest.mark.parametrize(
    ("way", "largest"),
    [
        ("int8", 0.02),
        ("int8-token", 0.02),
        ("int8-token-two-terms", 0.01),
        ("int4", 0.12),
        ("fp8", 0.06),
        ("int8-smoothed", 0.03),
        ("int8-two-terms", 0.01),
    ],
)
def test_the_error_is_that_of_the_bits(write_product: ProductWriter, way: str, largest: float) -> None:
    x, weight = make_product()
    recipe = make_recipe(way, len(weight), float(np.abs(x).max()) * (2 if way.endswith("smoothed") else 1))
    error = measure_error(quantize_product(write_product(weight), recipe), x, x @ weight)
    assert largest / 20 < error < largest


def test_two_terms_keep_what_an_outlier_costs_the_other_channels(write_product: ProductWriter) -> None:
    x, weight = make_product()
    weight[5] /= 10
    x[:, 5] *= 30
    weight = INT8.round_weight(weight).dequantize()  # the weight costs nothing more
    peak, exact = float(np.abs(x).max()), x @ weight
    one, two = (
        measure_error(
            quantize_product(write_product(weight), ProductRecipe(SCHEMES_BY_NAME["int8"], peak, terms=terms)), x, exact
        )
        for terms in (1, 2)
    )
    assert one > 0.1
    assert two < one / 100


def test_smoothing_cancels_out(write_product: ProductWriter) -> None:
    x, weight = make_product()
    factors = np.geomspace(0.1, 10, len(weight), dtype=np.float32)
    x, weight = x * factors, weight / factors[:, None]
    peak, exact = float(np.abs(x).max()), x @ weight
    int8, smoothed_peak = SCHEMES_BY_NAME["int8"], float(np.abs(x / factors).max())
    rough = quantize_product(write_product(weight), ProductRecipe(int8, peak))
    smooth = quantize_product(write_product(weight), ProductRecipe(int8, smoothed_peak, factors))
    assert measure_error(smooth, x, exact) < measure_error(rough, x, exact) / 2


@pytest.mark.parametrize("way", ["int8", "int8-two-terms"])
def test_a_bias_of_a_matrix_makes_no_gemm_with_a_weight_in_fp32(
    write_product: ProductWriter, way: str, tmp_path: Path
) -> None:
    x, weight = make_product()
    bias = np.linspace(-1, 1, weight.shape[1], dtype=np.float32)
    model = quantize_product(write_product(weight, bias), make_recipe(way, len(weight), float(np.abs(x).max())))
    found = count_fused(model, tmp_path)
    assert found["Gemm"] == found["DequantizeLinear"] == 0
    assert found["MatMulIntegerToFloat"] == 1
    assert measure_error(model, x, x @ weight + bias) < 0.02


def test_the_bias_is_kept_apart_for_a_reason(
    write_product: ProductWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, onnxruntime has learned to do it, and the subtraction can go."""
    monkeypatch.setattr("flash_export.exporters.quantization.rewrite.Place._keep_bias_apart", lambda place: None)
    _, weight = make_product()
    bias = np.ones(weight.shape[1], np.float32)
    model = quantize_product(write_product(weight, bias), make_recipe("int8", len(weight)))
    found = count_fused(model, tmp_path)
    assert (found["Gemm"], found["MatMulIntegerToFloat"]) == (1, 0)


def test_a_plan_without_the_range_that_it_needs_is_refused(write_product: ProductWriter) -> None:
    with pytest.raises(ValueError, match="scheme int8 with activation_max=None"):
        quantize_product(write_product(make_product()[1]), ProductRecipe(SCHEMES_BY_NAME["int8"]))


def test_only_products_with_weights_are_listed(write_product: ProductWriter) -> None:
    model = write_product(make_product()[1])
    (product,) = list_products(model)
    assert (product.name, product.input.name, product.weight.name) == ("out", "x", "out_weight")
