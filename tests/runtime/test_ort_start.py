"""Which library a provider lacks is told in one line, and no provider is taken for another."""

from __future__ import annotations

import ctypes
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest

from flash_export.errors import BackendUnavailableError
from flash_export.runtime import ort_start
from flash_export.runtime.ort import OrtRunner
from flash_export.runtime.ort_providers import CPU, CUDA, PROVIDERS, TENSORRT, TENSORRT_RTX, Provider
from flash_export.runtime.ort_start import StartFailure, describe_missing_library, find_start_failure

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle

LOADER = "{}: cannot open shared object file: No such file or directory"
# As onnxruntime 1.31.1 and 1.32.0 say it on a machine without a driver.
REGISTERING = (
    "[ONNXRuntimeError] : 1 : FAIL : Failed to load library /x/libonnxruntime_providers_nv_tensorrt_rtx.so with error: "
    "libcuda.so.1: cannot open shared object file: No such file or directory"
)


@pytest.mark.parametrize(
    ("message", "library", "cure"),
    [
        (LOADER.format("libcublasLt.so.13"), "libcublasLt.so.13", "onnxruntime-gpu[cuda,cudnn]"),
        (LOADER.format("libcudnn.so.9"), "libcudnn.so.9", "onnxruntime-gpu[cuda,cudnn]"),
        (LOADER.format("libnvinfer.so.10"), "libnvinfer.so.10", "tensorrt-cu13==10.*"),
        (LOADER.format("libnvidia-ml.so.1"), "libnvidia-ml.so.1", "NVIDIA driver"),
        (LOADER.format("libodd.so"), "libodd.so", "what libodd.so belongs to"),
        (REGISTERING, "libcuda.so.1", "NVIDIA driver"),
    ],
)
def test_library_and_cure(monkeypatch: pytest.MonkeyPatch, message: str, library: str, cure: str) -> None:
    monkeypatch.setattr(ort_start, "_read_version", lambda *packages: None)
    failure = describe_missing_library(message, CUDA)
    assert failure is not None
    assert failure.reason == f"{library} is missing"
    assert cure in failure.cure


def test_tensorrt_of_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_start, "_read_version", lambda *packages: "11.4.0.106")
    failure = describe_missing_library(LOADER.format("libnvinfer.so.10"), TENSORRT)
    assert failure is not None
    assert failure.reason == "libnvinfer.so.10 is missing (TensorRT 11.4.0.106 is installed)"


def test_other_messages_are_of_no_library() -> None:
    assert describe_missing_library("CUDA failure 100: no CUDA-capable device is detected", CUDA) is None


def test_cpu_starts() -> None:
    assert find_start_failure(onnxruntime, CPU) is None


def test_loader_is_asked_for_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A session that silently lacks the provider, and the provider's file beside onnxruntime."""
    library = tmp_path / "capi" / "libonnxruntime_providers_cuda.so"
    library.parent.mkdir()
    library.touch()
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "__init__.py"))
    session = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(ort_start, "start_session", lambda *_: session)

    def load(path: str) -> None:
        assert path == str(library)
        raise OSError(LOADER.format("libcurand.so.10"))

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(sys, "platform", "linux")
    assert find_start_failure(onnxruntime, CUDA) == StartFailure(
        "libcurand.so.10 is missing", "pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )


class Plugin(ModuleType):
    """The package of a plugin."""

    def get_library_path(self) -> str:
        return "/nowhere/libplugin.so"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Provider:
    monkeypatch.setitem(sys.modules, TENSORRT_RTX.plugin, Plugin(TENSORRT_RTX.plugin))
    monkeypatch.setattr(ort_start, "_registered", set())
    return TENSORRT_RTX


def test_plugin_that_cannot_be_loaded_is_asked_of_the_real_onnxruntime(plugin: Provider) -> None:
    failure = find_start_failure(onnxruntime, plugin)
    assert failure is not None
    assert (failure.reason, failure.cure.split(" ")[0]) == ("libplugin.so is missing", "install")


def test_plugin_without_a_gpu(plugin: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[tuple[str, str]] = []
    monkeypatch.setattr(
        onnxruntime, "register_execution_provider_library", lambda name, path: registered.append((name, path))
    )
    for _ in range(2):  # onnxruntime takes a library once
        failure = find_start_failure(onnxruntime, plugin)
        assert failure is not None
        assert failure.reason == f"{plugin.plugin} finds no GPU that it supports"
    assert registered == [(plugin.title, "/nowhere/libplugin.so")]


def test_plugin_is_added_for_its_devices(plugin: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands in for the plugin's device: the session is real, and so is what it started with."""
    (device, *_) = [one for one in onnxruntime.get_ep_devices() if one.ep_name == CPU.title]
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: [SimpleNamespace(ep_name=plugin.title, device=device)])
    added: list[tuple[Any, dict[str, str]]] = []

    class Options(onnxruntime.SessionOptions):  # type: ignore[misc]
        def add_provider_for_devices(self, devices: list[Any], settings: dict[str, str]) -> None:
            added.append((devices, settings))
            super().add_provider_for_devices([one.device for one in devices], {})

    session = ort_start.start_session(onnxruntime, plugin, ort_start._make_model(), Options(), {"nv_x": "1"})
    assert session.get_providers() == [CPU.title]
    assert [settings for _, settings in added] == [{"nv_x": "1"}]


def test_provider_without_a_node_is_refused(causal_byte_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is among those of the session, but the CPU computes everything."""
    real = onnxruntime.InferenceSession

    def open_session(model: str, options: Any, **_: Any) -> Any:
        session = real(model, options, providers=[CPU.title])
        monkeypatch.setattr(session, "get_providers", lambda: [CUDA.title, CPU.title])
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA.title])
    graph, path = causal_byte_bundle.get_graph(), causal_byte_bundle.get_graph_path()
    with pytest.raises(BackendUnavailableError, match=r"CUDAExecutionProvider starts here, but takes no node of model"):
        OrtRunner(graph, path, provider="cuda")


def test_provider_that_takes_nodes_is_accepted(causal_byte_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider of ours in all but the title, which is the CPU's."""
    monkeypatch.setitem(PROVIDERS, "other", Provider("other", CPU.title, "cpu"))
    graph, path = causal_byte_bundle.get_graph(), causal_byte_bundle.get_graph_path()
    with OrtRunner(graph, path, provider="other") as runner:
        assert runner.run({"input_ids": np.zeros((1, 3), np.int64)})["logits"].shape[:2] == (1, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cuda", "tensorrt", "tensorrt-rtx"])
def test_provider_gives_the_answers_of_the_cpu(causal_byte_bundle: Bundle, name: str) -> None:
    provider = PROVIDERS[name]
    if not provider.plugin and provider.title not in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has no {provider.title}")
    if (failure := find_start_failure(onnxruntime, provider)) is not None:
        pytest.skip(f"{failure.reason}; {failure.cure}")
    tokens = np.random.default_rng(0).integers(0, 257, (2, 21))
    graph, path = causal_byte_bundle.get_graph(), causal_byte_bundle.get_graph_path()
    with OrtRunner(graph, path) as cpu, OrtRunner(graph, path, provider=name) as gpu:
        expected = cpu.run({"input_ids": tokens})["logits"]
        for _ in range(2):  # the second run takes the buffers of the first
            found = gpu.run({"input_ids": tokens})["logits"]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
