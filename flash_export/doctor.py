"""What is installed here and what it is good for: export, run, build, validate.

Every check stands alone: a package that is missing or broken is a finding, never an error.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flash_export.config import FLAVOURS, TENSORRT_RTX, Flavour
from flash_export.formatting import format_bytes
from flash_export.install import get_install_command
from flash_export.processor import BF16_FLAGS, INT8_FLAGS, list_instructions, read_cpu_name
from flash_export.strict_json import format_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flash_export.runtime.ort_start import StartFailure

MIN_PYTHON = (3, 10)
LOW_DISK_BYTES = 2 << 30
REMOTE_PROVIDER = "AzureExecutionProvider"  # sends the work elsewhere, so it says nothing about this machine
PLUGIN = "ort-tensorrt-rtx"


class Status(str, Enum):
    """How well something can be used here."""

    OK = "ok"
    LIMITED = "limited"
    MISSING = "missing"
    BROKEN = "broken"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What.
        status: How well it can be used here.
        version: Its version; empty where it has none or is missing.
        detail: What it can do here and what it cannot.
        cure: What to do about it; empty where nothing needs doing.
        required: Whether nothing can be exported without it.
    """

    name: str
    status: Status
    version: str = ""
    detail: str = ""
    cure: str = ""
    required: bool = False

    def __bool__(self) -> bool:
        """Tell whether it can be used at all."""
        return self.status in (Status.OK, Status.LIMITED)


@dataclass(frozen=True)
class Diagnosis:
    """All findings; true if a model can be exported here."""

    findings: tuple[Finding, ...]

    def __bool__(self) -> bool:
        """Tell whether everything that an export needs can be used."""
        return all(finding for finding in self.findings if finding.required)

    def to_json(self) -> str:
        """Return strict JSON."""
        return format_json({"can_export": bool(self), "findings": self.findings})


def diagnose(folder: str | Path = ".") -> Diagnosis:
    """Look at Python, the packages, the GPU, the disk that holds ``folder`` and the memory."""
    checks: tuple[tuple[str, Callable[[], Finding], bool], ...] = (
        ("python", _check_python, True),
        ("torch", _check_torch, True),
        ("onnx", lambda: _check_package("onnx"), True),
        ("onnxscript", lambda: _check_package("onnxscript"), True),
        ("onnxruntime", _check_onnxruntime, False),
        (PLUGIN, _check_ort_plugin, False),
        ("openvino", lambda: _check_package("openvino", "openvino"), False),
        *((name, lambda name=name: _check_package(name, "audio"), False) for name in ("soundfile", "soxr")),
        ("tritonclient", lambda: _check_package("tritonclient", "triton"), False),
        *((name, lambda flavour=flavour: _check_tensorrt(flavour), False) for name, flavour in FLAVOURS.items()),
        ("gpu", _check_gpu, False),
        ("cpu", _check_cpu, False),
        ("disk", lambda: _check_disk(Path(folder)), False),
        ("memory", _check_memory, False),
    )
    return Diagnosis(tuple(_run_check(name, check, required) for name, check, required in checks))


def _run_check(name: str, check: Callable[[], Finding], required: bool) -> Finding:
    try:
        finding = check()
    except Exception as error:
        finding = Finding(name, Status.BROKEN, detail=_describe(error))
    return Finding(name, finding.status, finding.version, finding.detail, finding.cure, required)


def _check_python() -> Finding:
    version = platform.python_version()
    if sys.version_info < MIN_PYTHON:
        wanted = ".".join(map(str, MIN_PYTHON))
        return Finding("python", Status.BROKEN, version, "too old", f"use Python {wanted} or newer")
    return Finding("python", Status.OK, version, f"{platform.system()} {platform.machine()}")


def _check_package(name: str, extra: str = "") -> Finding:
    cure = get_install_command(extra)
    if not _is_installed(name):
        return Finding(name, Status.MISSING, cure=cure)
    try:
        module = importlib.import_module(name)
    except Exception as error:
        return Finding(name, Status.BROKEN, detail=_describe(error), cure=f"install it again: {cure}")
    version = str(getattr(module, "__version__", ""))
    return Finding(name, Status.OK, version.partition("-")[0])  # OpenVINO's goes on with build and branch


def _check_torch() -> Finding:
    found = _check_package("torch")
    if not found:
        return found
    torch = importlib.import_module("torch")
    build = f"CUDA {torch.version.cuda} build" if torch.version.cuda else "CPU build"
    return Finding("torch", Status.OK, found.version, build)


def _check_onnxruntime() -> Finding:
    found = _check_package("onnxruntime", "cpu")
    if not found:
        return found
    ort = importlib.import_module("onnxruntime")
    listed = [name for name in ort.get_available_providers() if name != REMOTE_PROVIDER]
    if not _check_package("onnx"):
        detail = f"listed, not tried: {_format_providers(listed)}"
        return Finding("onnxruntime", Status.LIMITED, found.version, detail, "needs onnx to try its providers")
    failures = {title: _find_failure(ort, title) for title in listed}
    usable = [title for title, failure in failures.items() if failure is None]
    detail = f"usable: {_format_providers(usable) or 'none'}"
    unusable = {title: failure for title, failure in failures.items() if failure is not None}
    if unusable:
        reasons = (f"{_format_providers([title])} ({failure.reason})" for title, failure in unusable.items())
        detail += f"; only listed: {', '.join(reasons)}"
    if not usable:
        cure = f"install it again: {get_install_command('cpu')}"
        return Finding("onnxruntime", Status.BROKEN, found.version, detail, cure)
    cure = "; ".join(dict.fromkeys(failure.cure for failure in unusable.values()))
    return Finding("onnxruntime", Status.LIMITED if unusable else Status.OK, found.version, detail, cure)


def _check_ort_plugin() -> Finding:
    """Look at the provider that comes as a plugin."""
    from flash_export.runtime.ort_providers import TENSORRT_RTX as PROVIDER
    from flash_export.runtime.ort_start import find_start_failure

    found = _check_package(PROVIDER.plugin, PROVIDER.extra)
    if not found:
        return Finding(PLUGIN, found.status, detail=found.detail, cure=found.cure)
    failure = find_start_failure(importlib.import_module("onnxruntime"), PROVIDER)
    if failure is None:
        return Finding(PLUGIN, Status.OK, found.version, "provider of onnxruntime: usable")
    return Finding(PLUGIN, Status.LIMITED, found.version, f"does not start: {failure.reason}", failure.cure)


def _find_failure(ort: Any, title: str) -> StartFailure | None:
    """Return why no session starts with a provider, which onnxruntime lists if it was compiled with it."""
    from flash_export.runtime.ort_providers import PROVIDERS, Provider
    from flash_export.runtime.ort_start import find_start_failure

    known = next((one for one in PROVIDERS.values() if one.title == title), None)
    return find_start_failure(ort, known or Provider(title, title, "cpu"))


def _format_providers(providers: Sequence[str]) -> str:
    return ", ".join(provider.removesuffix("ExecutionProvider") for provider in providers)


def _check_tensorrt(flavour: Flavour) -> Finding:
    from flash_export.runtime.trt_api import import_flavour, is_installed

    cure = get_install_command(flavour.extra)
    if not is_installed(flavour):
        return Finding(flavour.name, Status.MISSING, cure=cure)
    version = str(import_flavour(flavour).__version__)
    has_gpu = _has_cuda_device()
    builds = has_gpu or flavour is TENSORRT_RTX
    detail = f"builds engines here: {_format_flag(builds)}; runs them here: {_format_flag(has_gpu)}"
    need = "" if has_gpu else "to run engines: an NVIDIA GPU and a CUDA build of torch"
    return Finding(flavour.name, Status.OK if has_gpu else Status.LIMITED, version, detail, need)


def _check_gpu() -> Finding:
    if not _has_cuda_device():
        cure = f"to build engines without one: {TENSORRT_RTX.name}"
        return Finding("gpu", Status.MISSING, detail="torch sees no CUDA device", cure=cure)
    torch = importlib.import_module("torch")
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        devices.append(f"{properties.name}, compute capability {capability}, {format_bytes(properties.total_memory)}")
    return Finding("gpu", Status.OK, detail="; ".join(devices))


def _check_cpu() -> Finding:
    """Say what the processor does with few bits; not knowing it is no fault."""
    found = {kind: list_instructions(flags) for kind, flags in (("bf16", BF16_FLAGS), ("int8", INT8_FLAGS))}
    if found["bf16"] is None or found["int8"] is None:
        return Finding("cpu", Status.OK, detail=f"{read_cpu_name()}; this system does not tell its instructions")
    bf16 = f"bf16 by {', '.join(found['bf16'])}" if found["bf16"] else "no bf16, which OpenVINO computes in fp32 then"
    int8 = f"int8 by {', '.join(found['int8'])}" if found["int8"] else "no int8 dot products"
    return Finding("cpu", Status.OK, detail=f"{read_cpu_name()}; {bf16}; {int8}")


def _check_disk(folder: Path) -> Finding:
    usage = shutil.disk_usage(folder)
    enough = usage.free >= LOW_DISK_BYTES
    detail = f"{format_bytes(usage.free)} free of {format_bytes(usage.total)}"
    cure = "" if enough else "free some space: a bundle holds the weights twice, an engine once more"
    return Finding("disk", Status.OK if enough else Status.LIMITED, detail=detail, cure=cure)


def _check_memory() -> Finding:
    try:
        page_bytes = os.sysconf("SC_PAGE_SIZE")
        total, available = (page_bytes * os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return Finding("memory", Status.OK, detail="this system does not say")
    return Finding("memory", Status.OK, detail=f"{format_bytes(available)} free of {format_bytes(total)}")


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return name in sys.modules


def _has_cuda_device() -> bool:
    try:
        return bool(importlib.import_module("torch").cuda.is_available())
    except Exception:
        return False


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _format_flag(value: bool) -> str:
    return "yes" if value else "no"
