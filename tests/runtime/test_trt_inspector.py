"""The layers of a built engine: what an inspector tells, and what is said where there is no GPU to ask on."""

from __future__ import annotations

import inspect
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from flash_export.errors import BackendUnavailableError
from flash_export.runtime.trt import load_engine
from flash_export.runtime.trt_inspector import EngineLayer, parse_engine_information, read_engine_layers
from tests.runtime.read_trt_signatures import read_module
from tests.runtime.test_trt import make_model, needs_gpu

if TYPE_CHECKING:
    from collections.abc import Callable

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


class Inspector:
    def get_engine_information(self, format: Any) -> str:  # noqa: A002 (TensorRT's name)
        return json.dumps(DETAILED if format.name == "JSON" else NAMES)


class Engine:
    def create_engine_inspector(self) -> Inspector:
        return Inspector()


@pytest.mark.parametrize(
    ("stub", "method", "real"),
    [(Inspector, "get_engine_information", "EngineInspector"), (Engine, "create_engine_inspector", "ICudaEngine")],
)
def test_stub_has_the_signatures_of_tensorrt(stub: type, method: str, real: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    parameters = tuple(inspect.signature(getattr(stub, method)).parameters)[1:]
    assert any(one.names == parameters for one in read_module(trt)[real][method] or ())


def test_loaded_engine_tells_its_layers() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    loaded: Any = SimpleNamespace(engine=Engine(), trt=trt)
    assert read_engine_layers(loaded) == parse_engine_information(json.dumps(DETAILED))


class TestOnGpu:
    pytestmark = needs_gpu

    def test_built_engine_tells_its_layers(self, write_graph_bundle: BundleFactory) -> None:
        pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
        from flash_export.config import BuildOptions
        from flash_export.exporters.engine import build_engine

        bundle = write_graph_bundle(make_model())
        engine = build_engine(bundle, options=BuildOptions(flavour="tensorrt-rtx")).engine
        with load_engine(bundle, engine) as loaded:
            layers = read_engine_layers(loaded)
        assert layers
        assert all(layer.name for layer in layers)
