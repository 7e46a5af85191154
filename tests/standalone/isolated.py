"""Running programs of a standalone folder where neither PyTorch nor this package can be imported."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ALLOWED = ("numpy", "onnxruntime")
# What stands before a program: no site-packages, none of PYTHONPATH; then what is allowed, and proof of what is not.
_PRELUDE = """
import importlib.util, runpy, sys
sys.path[:0] = [{packages!r}, {folder!r}]
for name in ("torch", "onnx", "flash_export", "click", "jinja2"):
    assert importlib.util.find_spec(name) is None, f"{{name}} can be imported"
"""


def link_packages(folder: Path) -> Path:
    """Make a folder with links to the packages that are allowed, and return it."""
    folder.mkdir()
    for name in ALLOWED:
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            (folder / top).symlink_to(Path(str(distribution.locate_file(top))))
    return folder


def run_python(folder: Path, code: str, arguments: Sequence[str] = ()) -> subprocess.CompletedProcess[bytes]:
    """Run code that may import ``model`` of a standalone folder."""
    packages = folder.parent / "packages"
    if not packages.exists():
        link_packages(packages)
    prelude = _PRELUDE.format(packages=str(packages), folder=str(folder))
    command = [sys.executable, "-I", "-S", "-c", prelude + code, *arguments]
    return subprocess.run(command, capture_output=True, check=False)


def run_program(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run ``model.py`` as a program."""
    path = str(folder / "model.py")
    code = f"sys.argv[0] = {path!r}\nrunpy.run_path({path!r}, run_name='__main__')"
    return run_python(folder, code, arguments)
