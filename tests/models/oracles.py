"""Releases of other libraries, each in a folder of its own, of which only the model files are imported."""

from __future__ import annotations

import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flash_export.originals.installed import ModelFiles

ORACLES = Path(sys.prefix) / "oracles"


def find_oracle(release: str) -> Path:
    """Return the folder of a release; skips where no oracle was installed at all."""
    if not ORACLES.is_dir():
        pytest.skip(f"{ORACLES} does not exist; make test installs it")
    return ORACLES / release


def import_oracle(release: str, files: ModelFiles) -> list[Any]:
    """Import the model files of a release, and leave no module behind."""
    folder = find_oracle(release)
    before, path, writes = dict(sys.modules), list(sys.path), sys.dont_write_bytecode
    try:
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(folder))
        modules, _ = files.load()
    finally:
        sys.dont_write_bytecode, sys.path[:] = writes, path
        for name in sys.modules.keys() - before.keys():
            del sys.modules[name]
    for module in modules:
        assert Path(str(module.__file__)).is_relative_to(folder)
    return modules


def make_python(folder: Path, *releases: str) -> Path:
    """Make an interpreter that has the packages of this one and, before them, some releases."""
    paths = [str(find_oracle(release)) for release in releases]
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    here = next(path for path in sys.path if path.endswith("site-packages"))
    lines = [*(f"import sys; sys.path.insert(0, {path!r})" for path in paths), here]
    (site / "oracles.pth").write_text("\n".join(lines) + "\n")
    return folder / "bin" / "python"
