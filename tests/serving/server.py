"""A real Triton server on this machine, from the package ``nvidia-pytriton``: see ``tests/oracles.txt``."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.models.oracles import find_oracle

if TYPE_CHECKING:
    from collections.abc import Iterator

RELEASE = "nvidia-pytriton==0.7.0"
BACKENDS_VARIABLE = "FLASH_EXPORT_TRITON_BACKENDS"
ROOT = Path(__file__).parent.parent.parent
START_TIMEOUT_S, STOP_TIMEOUT_S = 120.0, 60.0


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        grpc: Address for gRPC.
        http: Address for HTTP.
        metrics: Address of the metrics.
        pid: Process id.
        log: File of its messages.
        repository: Folder of its models.
    """

    grpc: str
    http: str
    metrics: str
    pid: int
    log: Path
    repository: Path


@contextmanager
def run_server(repository: Path, folder: Path, *options: str) -> Iterator[Server]:
    """Run a server until the block ends; it is ready when the block begins.

    Args:
        repository: Folder of the models.
        folder: An empty folder for what the server needs.
        options: Further ones of the command line.
    """
    installed = find_release()
    shipped = installed / "pytriton" / "tritonserver"
    for name in ("bin", "backends", "caches"):
        shutil.copytree(shipped / name, folder / name, symlinks=True)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = shipped / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy2(stub, folder / "backends" / "python")
    if extra := os.environ.get(BACKENDS_VARIABLE):
        shutil.copytree(Path(extra) / "onnxruntime", folder / "backends" / "onnxruntime")
    ports = _find_ports(3)
    addresses = [f"127.0.0.1:{port}" for port in ports]
    command = [str(folder / "bin" / "tritonserver"), f"--model-repository={repository}"]
    command += [f"--backend-directory={folder / 'backends'}", f"--cache-directory={folder / 'caches'}"]
    for kind, port in zip(("http", "grpc", "metrics"), ports, strict=True):
        command += [f"--{kind}-address=127.0.0.1" if kind != "metrics" else "--metrics-address=127.0.0.1"]
        command += [f"--{kind}-port={port}"]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(installed / "nvidia_pytriton.libs"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    log = folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen([*command, *options], stdout=stream, stderr=stream, env=environment)
    try:
        _wait_until_ready(process, addresses[0], log)
        yield Server(addresses[1], addresses[0], addresses[2], process.pid, log, repository)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def find_release() -> Path:
    """Return the folder of the package; skips, saying why, where there is none that can run here."""
    folder = find_oracle(RELEASE)
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist; make test installs it")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not (folder / "pytriton" / "tritonserver" / "python_backend_stubs" / version).is_dir():
        pytest.skip(f"{RELEASE} has no Python backend for Python {version}")
    return folder


def need_onnxruntime_backend() -> None:
    """Skip where nobody says where the server's onnxruntime backend is."""
    if not os.environ.get(BACKENDS_VARIABLE):
        pytest.skip(f"{BACKENDS_VARIABLE} names no folder with Triton's onnxruntime backend; docs/triton.md builds it")


def _find_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"the server ended with {process.returncode}:\n{log.read_text(errors='replace')[-4000:]}")
        try:
            with urllib.request.urlopen(f"http://{address}/v2/health/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    pytest.fail(f"the server is not ready after {START_TIMEOUT_S:g} s:\n{log.read_text(errors='replace')[-4000:]}")
