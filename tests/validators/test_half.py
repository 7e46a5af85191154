"""Half-precision bundles pass validation and bisection, and a fault in them does not."""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import helper

from flash_export.bundle.bundle import Bundle
from flash_export.files import hash_file, write_file
from flash_export.validators.bisect.bisect import BisectOptions, bisect_bundle
from flash_export.validators.bisect.summary import describe_finding
from flash_export.validators.validate import validate_bundle
from flash_export.validators.validation_options import ValidationOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module", params=["fp16", pytest.param("bf16", marks=pytest.mark.slow)])
def half(request: pytest.FixtureRequest, export_half: Callable[[str], Bundle]) -> Bundle:
    """A causal bundle, all graphs, that no test may change."""
    return export_half(request.param)


def plant_fault(bundle: Bundle, folder: Path) -> Bundle:
    """Return a copy whose running sum over chunks includes the chunk itself."""
    copy = Bundle.open(shutil.copytree(bundle.path, folder / "faulty"))
    path = copy.get_graph_path()
    model = onnx.load(path, load_external_data=False)
    nodes = {node.name: node for node in model.graph.node}
    if (total := nodes.get("layers.1.linear/CumSum_0")) is not None:
        next(attribute for attribute in total.attribute if attribute.name == "exclusive").i = 0
    else:  # one product, with what is earlier for all blocks
        product = nodes["layers.1.linear/MatMul_1"]
        compare = nodes["graph/Greater_0"]
        cast = next(node for node in model.graph.node if product.input[0] in node.output)
        assert list(cast.input) == list(compare.output)
        wrong = [
            helper.make_node("GreaterOrEqual", compare.input, ["not later"], "not later"),
            helper.make_node("Cast", ["not later"], ["wrong"], "wrong", to=cast.attribute[0].i),
        ]
        index = list(model.graph.node).index(product)
        product.input[0] = "wrong"
        for node in reversed(wrong):
            model.graph.node.insert(index, node)
    onnx.save(model, path)
    files = {name: hash_file(copy.path / name) for name in copy.manifest.files}
    manifest = dataclasses.replace(copy.manifest, files=files)
    write_file(copy.path / "manifest.json", manifest.to_json().encode())
    return Bundle.open(copy.path)


OPTIONS = ValidationOptions(backends=("ort-cpu",), latency_budget_s=0, max_seq_len=96)


def test_healthy_bundle_passes(half: Bundle) -> None:
    report = validate_bundle(half, OPTIONS)
    assert report, [row for row in report.rows if row.status == "failed"]
    assert bisect_bundle(half, BisectOptions(threads=1))


def test_fault_is_refused_and_found(half: Bundle, tmp_path: Path) -> None:
    faulty = plant_fault(half, tmp_path)
    report = validate_bundle(faulty, OPTIONS)
    assert not report
    assert {row.backend for row in report.rows if row.status == "failed"} == {"ort-cpu"}
    finding = describe_finding(bisect_bundle(faulty, BisectOptions(threads=1)))
    assert "Block 1, linear key-value sum" in finding
