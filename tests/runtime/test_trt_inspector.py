"""The layers of a built engine: what an inspector tells, and what is said where there is no GPU to ask on."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch

from flash_export.errors import BackendUnavailableError
from flash_export.runtime import trt_inspector
from flash_export.runtime.trt_inspector import EngineLayer, parse_engine_information, read_engine_layers
from tests.runtime.test_trt import make_engine, make_model, needs_gpu

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle

    BundleFactory = Callable[..., Bundle]

# As engines say it that were built with ProfilingVerbosity.DETAILED (the form that NVIDIA's engine explorer reads).
DETAILED = {
    "Layers": [
        {
            "Name": "layers.0/MatMul_0 + layers.0/Add_0",
            "LayerType": "gemm",
            "Inputs": [{"Name": "x", "Dimensions": [1, 4], "Format/Datatype": "Half"}],
            "Outputs": [{"Name": "y", "Dimensions": [1, 4], "Format/Datatype": "Row major linear FP16 format"}],
            "Metadata": "[ONNX Layer: layers.0/MatMul_0]\x1e[ONNX Layer: layers.0/Add_0]",
        }
    ],
    "Bindings": ["x", "y"],
}
NAMES = {"Layers": ["gemm_0", "copy_1"], "Bindings": ["x", "y"]}


def test_detailed_layers_have_type_nodes_and_formats() -> None:
    (layer,) = parse_engine_information(json.dumps(DETAILED))
    nodes = ("layers.0/MatMul_0", "layers.0/Add_0")
    assert layer == EngineLayer(" + ".join(nodes), "gemm", nodes, ("Row major linear FP16 format",))


def test_raw_separator_in_the_metadata_is_read() -> None:
    text = json.dumps(DETAILED).replace("\\u001e", "\x1e")
    assert "\x1e" in text
    assert parse_engine_information(text) == parse_engine_information(json.dumps(DETAILED))


def test_engine_of_names_alone_has_no_types() -> None:
    assert parse_engine_information(json.dumps(NAMES)) == (
        EngineLayer("gemm_0", "", (), ()),
        EngineLayer("copy_1", "", (), ()),
    )


@pytest.mark.parametrize("text", ["", "no layers", "[]", "{}", '{"Layers": 3}', '{"Layers": [{"LayerType": "gemm"}]}'])
def test_other_forms_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(BackendUnavailableError, match="in a form that is not known"):
        parse_engine_information(text)


def test_nothing_is_read_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailableError, match=r"^no CUDA device here"):
        read_engine_layers(make_engine(), tmp_path / "never read")


class Inspector:
    def get_engine_information(self, format: Any) -> str:  # noqa: A002 (TensorRT's name)
        return json.dumps(DETAILED if format.name == "JSON" else NAMES)


class Engine:
    def create_engine_inspector(self) -> Inspector:
        return Inspector()


class Runtime:
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
        return Engine() if serialized_engine == b"plan" else None


STANDS_FOR = [
    (Inspector, "get_engine_information", "EngineInspector"),
    (Engine, "create_engine_inspector", "ICudaEngine"),
    (Runtime, "deserialize_cuda_engine", "Runtime"),
]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let TensorRT-RTX find a GPU, and an engine that it can load."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    monkeypatch.setattr(trt, "Runtime", Runtime)
    monkeypatch.setattr(trt_inspector, "has_cuda_device", lambda: True)


@pytest.mark.parametrize(("stub", "method", "real"), STANDS_FOR, ids=[method for _, method, _ in STANDS_FOR])
def test_stub_has_the_signatures_of_tensorrt(stub: type, method: str, real: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    parameters = getattr(stub, method).__code__.co_varnames[: getattr(stub, method).__code__.co_argcount]
    text = getattr(getattr(trt, real), method).__doc__
    signatures = [re.findall(r"(\w+): ", inner) for inner in re.findall(rf"{method}\((self: .*)\) -> ", text)]
    assert list(parameters) in signatures


@pytest.mark.usefixtures("stub")
def test_loaded_engine_tells_its_layers(tmp_path: Path) -> None:
    path = tmp_path / "tiny.engine"
    path.write_bytes(b"plan")
    assert read_engine_layers(make_engine(), path) == parse_engine_information(json.dumps(DETAILED))


@pytest.mark.usefixtures("stub")
def test_engine_that_cannot_be_loaded_is_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "tiny.engine"
    path.write_bytes(b"for another GPU")
    with pytest.raises(BackendUnavailableError, match=r"tiny.engine cannot be loaded here .*; build the engine again"):
        read_engine_layers(make_engine(), path)


class TestOnGpu:
    pytestmark = needs_gpu

    def test_built_engine_tells_its_layers(self, write_graph_bundle: BundleFactory) -> None:
        pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
        from flash_export.config import BuildOptions
        from flash_export.exporters.engine import build_engine

        bundle = write_graph_bundle(make_model())
        engine = build_engine(bundle, options=BuildOptions(flavour="tensorrt-rtx")).engine
        layers = read_engine_layers(engine, bundle.get_engine_path(engine))
        assert layers
        assert all(layer.name for layer in layers)
