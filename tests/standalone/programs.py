"""What compiles and runs the programs of a standalone folder in other languages, and why a test of them is skipped."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.validators.report.browser import CHROMIUM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FETCH = "run 'make test-clients', which fetches it"
# What it has fetched.
CLIENTS = Path(os.environ.get("FLASH_EXPORT_CLIENTS", "nowhere"))
HEADERS = (CLIENTS / "usr" / "include" / "onnxruntime", Path("/usr/include/onnxruntime"))
TENSORRT_HEADERS = (CLIENTS / "tensorrt" / "include", Path("/usr/include/x86_64-linux-gnu"), Path("/usr/include"))
CUDA_HEADERS = (CLIENTS / "cuda" / "nvidia" / "cu13" / "include", Path("/usr/local/cuda/include"))
NODE_MODULES = CLIENTS / "node_modules"
STAND_IN = Path(__file__).parent / "stand_in"


def find_headers(name: str, what: str, folders: Sequence[Path]) -> Path:
    """Return the first folder that has a header, or skip the test."""
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here; apt-get install cmake g++")
    found = next((path for path in folders if (path / name).is_file()), None)
    if found is None:
        pytest.skip(f"no headers of {what} here; {FETCH}")
    return found


def find_onnxruntime() -> Path:
    """Return the folder with the headers of onnxruntime, or skip the test."""
    return find_headers("onnxruntime_cxx_api.h", "onnxruntime", HEADERS)


def link_libraries(folder: Path, libraries: Mapping[str, Path]) -> dict[str, Path]:
    """Link libraries under the names that a linker and a loader look for, and return the first of each by its stem."""
    folder.mkdir()
    for stem, library in libraries.items():
        for suffix in ("so", f"so.{library.name.partition('.so.')[2].partition('.')[0]}"):
            (folder / f"lib{stem}.{suffix}").symlink_to(library)
    return {stem: folder / f"lib{stem}.so" for stem in libraries}


def find_onnxruntime_library() -> Path:
    """Return the library of the Python package, or skip the test."""
    (library,) = (_find_package("onnxruntime") / "capi").glob("libonnxruntime.so.1.*")
    return library


def build_cpp(service: Path) -> Path:
    """Compile the C++ program for onnxruntime; return it."""
    library = link_libraries(service.parent / "library", {"onnxruntime": find_onnxruntime_library()})["onnxruntime"]
    return build(service / "cpp", {"ONNXRUNTIME_INCLUDE_DIR": find_onnxruntime(), "ONNXRUNTIME_LIBRARY": library})


def build_tensorrt(service: Path) -> Path:
    """Compile the C++ program for TensorRT against its headers, and link the library of TensorRT-RTX; return it."""
    tensorrt = find_headers("NvInferRuntime.h", "TensorRT", TENSORRT_HEADERS)
    cuda = find_headers("crt/host_defines.h", "the CUDA runtime", CUDA_HEADERS)
    (library,) = _find_package("tensorrt_rtx_libs").glob("libtensorrt_rtx.so.*")
    cudart = max(cuda.parent.glob("lib*/libcudart.so.*"), default=None)
    if cudart is None:
        pytest.skip(f"no library of the CUDA runtime beside {cuda}; {FETCH}")
    libraries = link_libraries(service.parent / "library", {"tensorrt_rtx": library, "cudart": cudart})
    definitions = {
        "TENSORRT_INCLUDE_DIR": tensorrt,
        "TENSORRT_LIBRARY": libraries["tensorrt_rtx"],
        "CUDART_INCLUDE_DIR": cuda,
        "CUDART_LIBRARY": libraries["cudart"],
    }
    return build(service / "cpp-tensorrt", definitions)


def build_on_stand_in(service: Path) -> Path:
    """Compile the C++ program for TensorRT against what stands in for it on onnxruntime; return it."""
    headers = find_onnxruntime()
    library = link_libraries(service.parent / "library", {"onnxruntime": find_onnxruntime_library()})["onnxruntime"]
    definitions = {
        "TENSORRT_INCLUDE_DIR": STAND_IN,
        "TENSORRT_LIBRARY": library,
        "CUDART_INCLUDE_DIR": headers,
        "CUDART_LIBRARY": library,
    }
    return build(service / "cpp-tensorrt", definitions)


def build(sources: Path, definitions: Mapping[str, Path]) -> Path:
    """Compile a C++ program with all warnings as errors; return it."""
    target = sources / "build"
    flags = {"CMAKE_BUILD_TYPE": "Debug", "CMAKE_CXX_FLAGS": "-Wall -Wextra -Wconversion -Wpedantic -Werror"}
    options = [f"-D{name}={value}" for name, value in (flags | dict(definitions)).items()]
    commands: tuple[list[str | Path], ...] = (
        ["cmake", "-S", sources, "-B", target, *options],
        ["cmake", "--build", target],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return target / "flash_model"


def _find_package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"{name} is not installed")
    return Path(spec.origin).parent


def link_node_modules(service: Path) -> None:
    """Put onnxruntime-web where ``npm install`` would, or skip the test."""
    if not (NODE_MODULES / "onnxruntime-web").is_dir():
        pytest.skip(f"no onnxruntime-web here; {FETCH}")
    (service / "web" / "node_modules").symlink_to(NODE_MODULES)


def run_node(service: Path, code: str) -> str:
    """Run a module beside ``model.mjs``; return what it prints."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node here; apt-get install nodejs")
    link_node_modules(service)
    (service / "web" / "run.mjs").write_text(code)
    done = subprocess.run([node, service / "web" / "run.mjs"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def find_browser() -> str:
    """Return the browser, or skip the test."""
    if CHROMIUM is None:
        pytest.skip("no chromium here; apt-get install chromium")
    return CHROMIUM
