from __future__ import annotations

import importlib
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from flash_export import doctor
from flash_export.cli.main import main
from flash_export.doctor import Diagnosis, Finding, Status, diagnose
from flash_export.install import get_install_command
from flash_export.runtime import ort_start

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

NAMES = [
    *(
        "python",
        "torch",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "ort-tensorrt-rtx",
        "openvino",
        "soundfile",
        "soxr",
        "tritonclient",
        "tensorrt",
        "tensorrt-rtx",
    ),
    *("gpu", "cpu", "disk", "memory"),
]
PACKAGES = {
    "torch": "",
    "onnx": "",
    "onnxscript": "",
    "onnxruntime": "cpu",
    "ort-tensorrt-rtx": "ort-rtx",
    "openvino": "openvino",
    "soundfile": "audio",
    "soxr": "audio",
    "tritonclient": "triton",
    "tensorrt": "gpu",
    "tensorrt-rtx": "rtx",
}
MODULES = {"tensorrt-rtx": "tensorrt_rtx", "ort-tensorrt-rtx": "onnxruntime_ep_nv_tensorrt_rtx"}


def find(diagnosis: Diagnosis, name: str) -> Finding:
    return next(finding for finding in diagnosis.findings if finding.name == name)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that hides packages, as if they were not installed."""
    find_spec, import_module = importlib.util.find_spec, importlib.import_module

    def hide(*names: str) -> None:
        modules = {MODULES.get(name, name) for name in names}

        def find_nothing(name: str, package: str | None = None) -> Any:
            return None if name in modules else find_spec(name, package)

        def import_nothing(name: str, package: str | None = None) -> ModuleType:
            if name in modules:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return import_module(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", find_nothing)
        monkeypatch.setattr(importlib, "import_module", import_nothing)

    return hide


def test_everything_is_looked_at_and_exporting_is_possible_here() -> None:
    diagnosis = diagnose()
    assert [finding.name for finding in diagnosis.findings] == NAMES
    assert diagnosis
    for name in ("torch", "onnx", "onnxscript"):
        assert find(diagnosis, name).version == importlib.import_module(name).__version__


@pytest.mark.parametrize(("name", "extra"), PACKAGES.items())
def test_missing_package_is_a_finding_with_a_cure(without: Any, name: str, extra: str) -> None:
    without(name)
    diagnosis = diagnose()
    finding = find(diagnosis, name)
    assert finding.status is Status.MISSING
    assert finding.cure == get_install_command(extra)
    assert not finding
    assert bool(diagnosis) is (name not in ("torch", "onnx", "onnxscript"))


def test_everything_missing_is_no_crash(without: Any) -> None:
    without(*PACKAGES)
    diagnosis = diagnose()
    assert [finding.name for finding in diagnosis.findings] == NAMES
    assert {find(diagnosis, name).status for name in PACKAGES} == {Status.MISSING}
    assert not diagnosis


@pytest.mark.parametrize("name", PACKAGES)
def test_broken_package_is_a_finding(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    module = MODULES.get(name, name)
    find_spec, import_module = importlib.util.find_spec, importlib.import_module

    def import_broken(wanted: str, package: str | None = None) -> ModuleType:
        if wanted == module:
            raise OSError(f"lib{module}.so: cannot open shared object file")
        return import_module(wanted, package)

    monkeypatch.setattr(importlib, "import_module", import_broken)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda wanted, package=None: object() if wanted == module else find_spec(wanted)
    )
    finding = find(diagnose(), name)
    assert finding.status is Status.BROKEN
    assert f"lib{module}.so: cannot open shared object file" in finding.detail


def test_provider_that_does_not_start_is_only_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider", "NoneExecutionProvider"])
    with pytest.warns(UserWarning, match="NoneExecutionProvider"):
        finding = find(diagnose(), "onnxruntime")
    assert finding.status is Status.LIMITED
    assert finding.detail.startswith("usable: CPU; only listed: None (")
    assert finding.cure


def test_missing_library_of_a_provider_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    listed = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: listed)
    libraries = {"tensorrt": "libnvinfer.so.10", "cuda": "libcublasLt.so.13"}

    def find_failure(_: ModuleType, provider: Any) -> Any:
        library = libraries.get(provider.name)
        message = f"{library}: cannot open shared object file: No such file or directory"
        return library and ort_start.describe_missing_library(message, provider)

    monkeypatch.setattr(ort_start, "find_start_failure", find_failure)
    finding = find(diagnose(), "onnxruntime")
    assert finding.detail == (
        "usable: CPU; only listed: Tensorrt (libnvinfer.so.10 is missing), CUDA (libcublasLt.so.13 is missing)"
    )
    assert finding.cure == "pip install 'tensorrt-cu13==10.*'; pip install 'onnxruntime-gpu[cuda,cudnn]'"


def test_plugin_that_does_not_start_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    monkeypatch.setattr(doctor, "_check_package", lambda name, extra="": Finding(name, Status.OK, "0.5.0"))
    failure = ort_start.StartFailure("libcuda.so.1 is missing", "install the NVIDIA driver")
    monkeypatch.setattr(ort_start, "find_start_failure", lambda ort, provider: failure)
    finding = find(diagnose(), "ort-tensorrt-rtx")
    assert (finding.status, finding.version, finding.cure) == (Status.LIMITED, "0.5.0", "install the NVIDIA driver")
    assert finding.detail == "does not start: libcuda.so.1 is missing"


@pytest.mark.parametrize(("gpu", "status"), [(False, Status.LIMITED), (True, Status.OK)])
def test_tensorrt_rtx_builds_without_a_gpu_and_runs_with_one(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, status: Status
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    monkeypatch.setattr(doctor, "_has_cuda_device", lambda: gpu)
    finding = find(diagnose(), "tensorrt-rtx")
    assert finding.status is status
    assert finding.detail == f"builds engines here: yes; runs them here: {'yes' if gpu else 'no'}"


def test_full_disk_is_pointed_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "LOW_DISK_BYTES", 1 << 60)
    finding = find(diagnose(tmp_path), "disk")
    assert finding.status is Status.LIMITED
    assert "free some space" in finding.cure


def test_json_says_the_same() -> None:
    result = CliRunner().invoke(main, ["doctor", "--json", "-"])
    assert result.exit_code == 0
    values = json.loads(result.stdout)
    assert values["can_export"] is True
    assert [finding["name"] for finding in values["findings"]] == NAMES
    assert set(values["findings"][0]) == {"name", "status", "version", "detail", "cure", "required"}


def test_table_names_everything() -> None:
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0
    for name in NAMES:
        assert name in result.stdout
    assert "Models can be exported here." in result.stdout


def test_exit_code_is_1_when_nothing_can_be_exported(without: Any) -> None:
    without("onnx")
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "No model can be exported here." in result.stdout


def test_too_old_python_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_PYTHON", (sys.version_info.major + 1, 0))
    finding = find(diagnose(), "python")
    assert finding.status is Status.BROKEN
    assert "or newer" in finding.cure
