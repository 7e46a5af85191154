"""OpenVINO reads the same graphs and gives the same answers: whole texts, in pieces, at one fixed shape."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from flash_export.errors import BackendUnavailableError, BundleError, InputError
from flash_export.generation.generate import Generator
from flash_export.runtime.backends import find_target, get_backend
from flash_export.runtime.openvino import OpenVinoRunner
from flash_export.validators.validate import validate_bundle
from flash_export.validators.validation_options import ValidationOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
TOKENS = np.random.default_rng(0).integers(0, 257, (2, 21))


@needs_openvino
def test_a_bundle_is_valid_on_it_whole_and_in_pieces(causal_byte_bundle: Bundle) -> None:
    options = ValidationOptions(
        backends=("openvino", "stream:openvino"), max_seq_len=9, batches=(2,), threads=1, latency_budget_s=0
    )
    report = validate_bundle(causal_byte_bundle, options)
    assert report, [row.reason for row in report.rows if not row]
    assert {"repeat", "future", "static-shape", "saved-state"} <= {row.check for row in report.rows if row}
    assert report.scores is not None
    assert report.scores.values.keys() == {"eager", "openvino", "stream:openvino"}


@needs_openvino
def test_it_continues_a_text_as_onnxruntime_does(causal_byte_bundle: Bundle) -> None:
    logits = {}
    for name in ("ort-cpu", "openvino"):
        with Generator.open(causal_byte_bundle, name, threads=1) as generator:
            logits[name], _ = generator.prefill(list(TOKENS))
    np.testing.assert_allclose(
        logits["openvino"], logits["ort-cpu"], rtol=0, atol=1e-5 * np.abs(logits["ort-cpu"]).max()
    )


@needs_openvino
def test_what_does_not_fit_is_told_as_by_every_backend(causal_byte_bundle: Bundle, tmp_path: Path) -> None:
    graph, path = causal_byte_bundle.get_graph(), causal_byte_bundle.get_graph_path()
    with OpenVinoRunner(graph, path, threads=1) as runner, pytest.raises(InputError, match="seq_len=97"):
        runner.run({"input_ids": np.zeros((1, 97), np.int64)})
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match="cannot be loaded by OpenVINO") as found:
        OpenVinoRunner(graph, tmp_path / "broken.onnx")
    assert "\n" not in str(found.value)


def test_without_it_the_cure_is_named(causal_byte_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendUnavailableError, match="OpenVINO is not installed; pip install"):
        find_target(causal_byte_bundle, "openvino", "forward").open()


def test_it_is_validated_only_when_asked_for(causal_byte_bundle: Bundle) -> None:
    from flash_export.validators.backends import list_backends

    names = {one.name for one in list_backends(causal_byte_bundle)}
    assert names == {"ort-cpu", "ort-cuda", "stream:ort-cpu", "stream:ort-cuda"}
    (asked,) = list_backends(causal_byte_bundle, ["openvino"])
    assert (asked.name, asked.device, asked.graph) == ("openvino", "cpu", "forward")


@needs_openvino
def test_a_hint_that_is_not_kept_is_an_error(causal_byte_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = importlib.import_module("openvino")

    class Compiled:
        """A model that was compiled for another precision than was asked for."""

        def create_infer_request(self) -> None:
            return None

        def get_property(self, name: str) -> object:
            return openvino.Type.bf16

    monkeypatch.setattr(openvino.Core, "compile_model", lambda *_: Compiled())
    with pytest.raises(BundleError, match=r"answers INFERENCE_PRECISION_HINT=.*bf.* where .*float32.* was asked for"):
        find_target(causal_byte_bundle, "openvino", "forward").open()


@needs_openvino
@pytest.mark.parametrize(
    ("precision", "capabilities", "is_told"),
    [("bf16", ["FP32", "INT8"], True), ("bf16", ["FP32", "BF16"], False), ("fp32", ["FP32"], False)],
)
def test_it_says_where_the_processor_has_no_bf16(
    monkeypatch: pytest.MonkeyPatch, precision: str, capabilities: list[str], *, is_told: bool
) -> None:
    openvino = importlib.import_module("openvino")
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: capabilities)
    said = get_backend("openvino").describe_arithmetic(precision)
    assert (said is not None) == is_told
    assert said is None or "this processor has no instructions for it" in said


@needs_openvino
def test_a_bf16_bundle_is_valid_on_it_whole_and_in_pieces(export_half: Callable[[str], Bundle]) -> None:
    options = ValidationOptions(backends=("openvino", "stream:openvino"), max_seq_len=96, threads=1, latency_budget_s=0)
    report = validate_bundle(export_half("bf16"), options)
    assert report, [row.reason for row in report.rows if not row]
    assert not report.count("skipped")
    native = "BF16" in importlib.import_module("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert ("computed" in report.environment) == (not native)
