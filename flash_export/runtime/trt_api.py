"""TensorRT's Python API, as far as building, reading and running share it: what is installed, logging, parsing.

No module imports TensorRT but through here, and then only when asked.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flash_export.config import FLAVOURS
from flash_export.errors import BackendUnavailableError, BundleError, EngineBuildError
from flash_export.install import get_install_command
from flash_export.runtime.trt_log import get_log
from flash_export.runtime.trt_parser_errors import format_complaints, read_complaints

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.manifest import EngineManifest
    from flash_export.config import Flavour

_DTYPE_NAMES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "FP8": "float8_e4m3fn",
    "FP4": "float4_e2m1fn",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "INT4": "int4",
    "UINT8": "uint8",
    "BOOL": "bool",
}


def is_installed(flavour: Flavour) -> bool:
    """Tell whether the package of a flavour is installed, without importing it."""
    return importlib.util.find_spec(flavour.module) is not None


def has_cuda_device() -> bool:
    """Tell whether PyTorch sees a CUDA device; where there is no driver, that is known without loading PyTorch."""
    if "torch" not in sys.modules:
        try:
            ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        except OSError:
            return False
    import torch

    return torch.cuda.is_available()


def get_device_capability() -> str:
    """Return the compute capability of the current CUDA device, such as ``8.9``."""
    import torch

    return ".".join(map(str, torch.cuda.get_device_capability()))


def import_flavour(flavour: Flavour) -> Any:
    """Import the package of a flavour.

    Raises:
        BackendUnavailableError: It is not installed, or its libraries cannot be loaded.
    """
    cure = get_install_command(flavour.extra)
    try:
        return importlib.import_module(flavour.module)
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(f"{flavour.title} is not installed (no module {error.name!r}); {cure}") from error
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendUnavailableError(
            f"{flavour.title} is installed but cannot be loaded ({error}); install it again: {cure}"
        ) from error


def get_flavour(engine: EngineManifest) -> Flavour:
    """Return the flavour that an engine was built with.

    Raises:
        BundleError: Its manifest names one that is not known.
    """
    if engine.flavour not in FLAVOURS:
        raise BundleError(
            f"engine {engine.name!r} has flavour {engine.flavour!r}, this version knows {', '.join(FLAVOURS)}; "
            "build it again"
        )
    return FLAVOURS[engine.flavour]


def name_dtype(dtype: Any) -> str:
    """Return the numpy name of a TensorRT dtype, such as ``float16`` for ``HALF``."""
    name = str(dtype.name)
    return _DTYPE_NAMES.get(name, name.lower())


@dataclass(frozen=True)
class ParsedNetwork:
    """A network that a parser made of an ONNX file, strongly typed: every layer has the dtype that the graph gives it.

    Attributes:
        trt: The module of the flavour.
        builder: What the network belongs to.
        network: The ``INetworkDefinition``.
        parser: It owns the weights that the network refers to, so it has to outlive the network.
    """

    trt: Any
    builder: Any
    network: Any
    parser: Any


def parse_network(flavour: Flavour, path: Path) -> ParsedNetwork:
    """Parse an ONNX file, from the file so that external data is found beside it. No GPU is needed.

    Raises:
        BackendUnavailableError: The flavour is not installed.
        EngineBuildError: The parser cannot take the graph.
    """
    trt = import_flavour(flavour)
    log = get_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        complaints = read_complaints(parser, path)
        raise EngineBuildError(f"{flavour.title} cannot take {path}: {format_complaints(complaints)}")
    return ParsedNetwork(trt, builder, network, parser)
