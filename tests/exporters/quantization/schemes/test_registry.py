"""The table of schemes: each in a file of its own, and in the graph what its own rounding says."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from flash_export.config import MAX_OPSET, MIN_OPSET, SCHEMES
from flash_export.exporters.quantization.recipe import ProductRecipe
from flash_export.exporters.quantization.rounding import ProductSample
from flash_export.exporters.quantization.schemes import registry
from flash_export.exporters.quantization.schemes.registry import SCHEMES_BY_NAME
from flash_export.limits import QUANTIZATION_BUDGETS
from tests.exporters.quantization.builders import BLOCK, list_roundings, quantize_product, write_product


def test_every_scheme_is_a_file_a_line_and_a_budget() -> None:
    assert tuple(SCHEMES_BY_NAME) == SCHEMES == tuple(QUANTIZATION_BUDGETS)
    files = {Path(inspect.getfile(scheme.rewrite)) for scheme in SCHEMES_BY_NAME.values()}
    assert {file.stem for file in files} == {name.replace("-", "_") for name in SCHEMES}
    folder = Path(registry.__file__).parent
    shared = {folder / name for name in ("__init__.py", "registry.py")}
    assert {file.resolve() for file in folder.glob("*.py")} == {file.resolve() for file in files | shared}


@pytest.mark.parametrize("name", SCHEMES_BY_NAME)
def test_the_opset_that_a_scheme_states_is_the_first_with_its_operators(name: str) -> None:
    scheme = SCHEMES_BY_NAME[name]
    assert MIN_OPSET <= scheme.opset <= MAX_OPSET
    weight = np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)
    x = np.ones((1, 32), np.float32)
    for rounding in list_roundings(ProductSample(weight, x, x[0]), name):
        model = quantize_product(write_product(weight), rounding.recipe)
        model.opset_import[0].version = scheme.opset
        onnx.checker.check_model(model, full_check=True)
        if scheme.opset > MIN_OPSET:
            model.opset_import[0].version = scheme.opset - 1
            with pytest.raises((onnx.checker.ValidationError, onnx.shape_inference.InferenceError)):
                onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("name", SCHEMES_BY_NAME)
def test_a_plan_has_what_its_scheme_needs_and_nothing_else(name: str) -> None:
    scheme = SCHEMES_BY_NAME[name]
    known = 1.0 if scheme.has_range else None
    blocks = BLOCK if scheme.has_blocks else None
    ProductRecipe(scheme, known, terms=scheme.max_terms, block_size=blocks)
    with pytest.raises(ValueError, match=f"scheme {name} with activation_max="):
        ProductRecipe(scheme, None if scheme.has_range else 1.0, block_size=blocks)
    with pytest.raises(ValueError, match=f"scheme {name} with block_size="):
        ProductRecipe(scheme, known, block_size=None if scheme.has_blocks else BLOCK)
    with pytest.raises(ValueError, match=f"scheme {name} has no smoothed or float product in 3 terms"):
        ProductRecipe(scheme, known, terms=3, block_size=blocks)


# What a scheme that reads no activations costs is not foretold; see test_int8_token.py.
@pytest.mark.parametrize("name", [name for name, scheme in SCHEMES_BY_NAME.items() if scheme.reads_activations])
@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(8, 20),
    blocks=st.integers(1, 5),
    outputs=st.integers(8, 20),
    outlier=st.sampled_from([1, 50]),
    seed=st.integers(0, 99),
)
def test_a_rewritten_product_is_off_by_what_its_rounding_says(
    name: str, rows: int, blocks: int, outputs: int, outlier: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, BLOCK * blocks)).astype(np.float32)
    weight = rng.standard_normal((BLOCK * blocks, outputs)).astype(np.float32)
    x[:, 0] *= outlier
    weight[0] /= outlier
    roundings = list_roundings(ProductSample(weight, x, np.abs(x).max(axis=0)), name, block_size=BLOCK)
    assert roundings
    for rounding in roundings:
        assert rounding.recipe.scheme is SCHEMES_BY_NAME[name]
        # onnxruntime rounds activations of int4 products too; the reference implementation does what the graph says.
        evaluator = ReferenceEvaluator(quantize_product(write_product(weight), rounding.recipe))
        (found,) = evaluator.run(None, {"x": x})
        error = float(np.sqrt(np.square(np.asarray(found) - x @ weight).mean() / np.square(x @ weight).mean()))
        assert error == pytest.approx(rounding.error, rel=0.05)
