"""What compiles and runs the programs of a standalone folder in other languages, and why a test of them is skipped."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.validators.report.browser import CHROMIUM

FETCH = "run 'make test-clients', which fetches it"
# What it has fetched.
CLIENTS = Path(os.environ.get("FLASH_EXPORT_CLIENTS", "nowhere"))
HEADERS = (CLIENTS / "usr" / "include" / "onnxruntime", Path("/usr/include/onnxruntime"))
NODE_MODULES = CLIENTS / "node_modules"


def find_headers() -> Path:
    """Return the folder with the headers of onnxruntime, or skip the test."""
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here; apt-get install cmake g++")
    found = next((path for path in HEADERS if (path / "onnxruntime_cxx_api.h").is_file()), None)
    if found is None:
        pytest.skip(f"no headers of onnxruntime here; {FETCH}")
    return found


def link_library(folder: Path) -> Path:
    """Link the library of the Python package under the names that a linker and a loader look for; return the first."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        pytest.skip("onnxruntime is not installed")
    (library,) = (Path(spec.origin).parent / "capi").glob("libonnxruntime.so.1.*")
    folder.mkdir()
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(library)
    return folder / "libonnxruntime.so"


def build_cpp(service: Path) -> Path:
    """Compile the C++ program with all warnings as errors; return it."""
    headers, build = find_headers(), service / "cpp" / "build"
    definitions = {
        "CMAKE_BUILD_TYPE": "Debug",
        "CMAKE_CXX_FLAGS": "-Wall -Wextra -Wconversion -Wpedantic -Werror",
        "ONNXRUNTIME_INCLUDE_DIR": headers,
        "ONNXRUNTIME_LIBRARY": link_library(service.parent / "library"),
    }
    options = [f"-D{name}={value}" for name, value in definitions.items()]
    commands: tuple[list[str | Path], ...] = (
        ["cmake", "-S", service / "cpp", "-B", build, *options],
        ["cmake", "--build", build],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "flash_model"


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
