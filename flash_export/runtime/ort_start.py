"""Whether an execution provider of onnxruntime starts here and, where it does not, which library is missing.

onnxruntime lists what it was compiled with; a provider whose libraries or GPU are missing is left out of a session, and
a line of its log says why. Here that reason is found and returned.
"""

from __future__ import annotations

import ctypes
import importlib
import io
import os
import re
import sys
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flash_export.config import TENSORRT as TENSORRT_FLAVOUR
from flash_export.errors import BackendUnavailableError, describe_reason
from flash_export.install import get_install_command
from flash_export.runtime.ort_providers import CPU, CUDA, CUDA_OPTIONS, TENSORRT, TENSORRT_RTX, Provider
from flash_export.runtime.trt_api import import_flavour

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

LOG_WARNING, LOG_FATAL = 2, 4
_MISSING_LIBRARY = re.compile(r"([^\s:/]+): cannot open shared object file")
_TENSORRT_LIBRARY = re.compile(r"lib(?:nvinfer|nvonnxparser)\w*\.so\.(\d+)")
_DRIVER_LIBRARIES = ("libcuda.so", "libnvidia-ml.so")
_CUDA_LIBRARY = re.compile(r"lib(?:cu|nvrtc|nvJitLink)")
# Packages that have what builds the engines of a provider.
_BUILDERS = {
    TENSORRT.name: ("tensorrt", "tensorrt-cu13"),
    TENSORRT_RTX.name: ("onnxruntime-ep-nv-tensorrt-rtx-cu13", "onnxruntime-ep-nv-tensorrt-rtx-cu12"),
}


@dataclass(frozen=True)
class StartFailure:
    """Why a provider does not start.

    Attributes:
        reason: A clause, such as ``libcublasLt.so.13 is missing``.
        cure: What to do about it.
    """

    reason: str
    cure: str


def find_start_failure(ort: ModuleType, provider: Provider) -> StartFailure | None:
    """Start a session of one node; return why a provider had no part in it, or None if it had.

    Args:
        ort: The module ``onnxruntime``.
        provider: The provider, which onnxruntime lists or a plugin brings.
    """
    options = ort.SessionOptions()
    options.log_severity_level = LOG_FATAL
    try:
        session = start_session(ort, provider, _make_model(), options, {})
    except BackendUnavailableError as error:
        reason, _, cure = str(error).partition("; ")
        return StartFailure(reason, cure)
    except Exception as error:
        return _explain(ort, provider, describe_reason(error))
    return None if provider.title in session.get_providers() else _explain(ort, provider, "")


def start_session(
    ort: ModuleType, provider: Provider, model: str | bytes, options: Any, settings: dict[str, str]
) -> Any:
    """Open a session with a provider, and for what it cannot compute those that onnxruntime brings.

    Whether it had a part in it is for the caller to see; onnxruntime leaves out what does not start.

    Raises:
        BackendUnavailableError: It comes as a plugin, which is not installed, cannot be loaded or finds no GPU.
        Exception: onnxruntime refuses the model.
    """
    if provider.builds_engines:
        # Neither provider has an option that turns TensorFloat-32 off, which keeps 10 bits of mantissa.
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    if provider is CPU:
        return ort.InferenceSession(model, options, providers=[provider.title], enable_fallback=0)
    with _silence(ort):
        if provider.plugin:
            options.add_provider_for_devices(_find_plugin_devices(ort, provider), settings)
            return ort.InferenceSession(model, options, enable_fallback=0)
        providers: list[Any] = [(provider.title, settings)]
        if provider is TENSORRT:
            with suppress(BackendUnavailableError):
                import_flavour(TENSORRT_FLAVOUR)  # loads its libraries, wherever pip put them
            providers.append((CUDA.title, CUDA_OPTIONS))
        if hasattr(ort, "preload_dlls"):
            with redirect_stdout(io.StringIO()):
                ort.preload_dlls()  # finds the CUDA libraries of the nvidia-* packages, and prints which it did not
        return ort.InferenceSession(model, options, providers=providers, enable_fallback=0)


def read_versions(ort: ModuleType, provider: Provider) -> tuple[str, ...]:
    """Return the versions of what builds and runs a provider's engines, and the name of the GPU."""
    import torch

    builder = _read_version(*_BUILDERS[provider.name]) or "unknown"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "unknown"
    return ort.__version__, builder, gpu


@contextmanager
def _silence(ort: ModuleType) -> Iterator[None]:
    """Keep onnxruntime from logging while it looks for libraries: what it does not find is told in our words."""
    ort.set_default_logger_severity(LOG_FATAL)
    try:
        yield
    finally:
        ort.set_default_logger_severity(LOG_WARNING)  # its own; it cannot be asked for what was set before


def describe_missing_library(message: str, provider: Provider) -> StartFailure | None:
    """Return what the message of a dynamic loader says of a missing library; None if it says nothing of one.

    >>> describe_missing_library("libcuda.so.1: cannot open shared object file: No such file", CUDA)
    StartFailure(reason='libcuda.so.1 is missing', cure='install the NVIDIA driver, on a machine with an NVIDIA GPU')
    """
    if (found := _MISSING_LIBRARY.search(message)) is None:
        return None
    library = found[1]
    reason = f"{library} is missing"
    if library.startswith(_DRIVER_LIBRARIES):
        return StartFailure(reason, "install the NVIDIA driver, on a machine with an NVIDIA GPU")
    if (tensorrt := _TENSORRT_LIBRARY.match(library)) is not None:
        version = _read_version(*_BUILDERS[TENSORRT.name])
        installed = "" if version is None else f" (TensorRT {version} is installed)"
        return StartFailure(reason + installed, f"pip install 'tensorrt-cu13=={tensorrt[1]}.*'")
    if _CUDA_LIBRARY.match(library):
        return StartFailure(reason, "pip install 'onnxruntime-gpu[cuda,cudnn]'")
    return StartFailure(reason, f"install what {library} belongs to, or again: {get_install_command(provider.extra)}")


def _explain(ort: ModuleType, provider: Provider, reason: str) -> StartFailure:
    """Return why a provider did not start: the loader is asked again, and now it answers us.

    The library is loaded only where onnxruntime has just tried to.
    """
    name = provider.title.removesuffix("ExecutionProvider").lower()
    prefix, suffix = ("", "dll") if sys.platform == "win32" else ("lib", "so")
    library = Path(str(ort.__file__)).parent / "capi" / f"{prefix}onnxruntime_providers_{name}.{suffix}"
    if library.is_file():
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            missing = describe_missing_library(str(error), provider)
            return missing or StartFailure(describe_reason(error), get_install_command(provider.extra))
    return StartFailure(
        reason or "it was left out of the session", "see with nvidia-smi whether there is a GPU that it can use"
    )


# Libraries of plugins that onnxruntime was told of: it takes each once.
_registered: set[str] = set()


def _find_plugin_devices(ort: ModuleType, provider: Provider) -> list[Any]:
    def find() -> list[Any]:
        return [device for device in ort.get_ep_devices() if device.ep_name == provider.title]

    cure = get_install_command(provider.extra)
    if not hasattr(ort, "register_execution_provider_library"):
        raise BackendUnavailableError(f"onnxruntime {ort.__version__} takes no plugins; {cure}")
    if devices := find():
        return devices
    try:
        library = importlib.import_module(provider.plugin).get_library_path()
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(f"{provider.plugin} is not installed; {cure}") from error
    if library not in _registered:
        try:
            ort.register_execution_provider_library(provider.title, library)
        except Exception as error:
            missing = describe_missing_library(str(error), provider)
            found = missing or StartFailure(describe_reason(error), f"install it again: {cure}")
            raise BackendUnavailableError(f"{found.reason}; {found.cure}") from error
        _registered.add(library)
    if devices := find():
        return devices
    raise BackendUnavailableError(
        f"{provider.plugin} finds no GPU that it supports; see docs/tensorrt.md for which it does, or use ort-cuda"
    )


def _read_version(*packages: str) -> str | None:
    """Return the version of the first of these packages that is installed."""
    return next((one.version for name in packages for one in metadata.distributions(name=name)), None)


def _make_model() -> bytes:
    from onnx import TensorProto, helper

    source, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "check", [source], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(model.SerializeToString())
