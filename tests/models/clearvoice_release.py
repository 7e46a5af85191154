"""clearvoice 0.1.2's own model files of MossFormer2, without what the package depends on.

The package's ``__init__`` wants everything from audio files to face detection; only the folders of two models are
imported. torchinfo, which they import and do not use, is replaced by nothing. What computes is the package's own text,
with the rotary embedding that is installed: of what is called here, release 0.9.1 computes the same as 0.8.3, which
clearvoice pins.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ORACLES = Path(sys.prefix) / "oracles"
RELEASE = "clearvoice==0.1.2"
_FOLDERS = ("", "models", "models.mossformer2_se", "models.mossformer2_ss")
_FILES = (
    *("se.mossformer2", "se.mossformer2_block", "se.mossformer2_se_wrapper"),
    *("ss.mossformer2", "ss.mossformer2_block"),
)


@dataclass(frozen=True)
class ClearvoiceRelease:
    """The files of the two models: speech enhancement, its wrapper, and speech separation."""

    enhancement: Any
    enhancement_block: Any
    wrapper: Any
    separation: Any
    separation_block: Any


def import_clearvoice() -> ClearvoiceRelease:
    """Import the files, and leave no module behind; skips where no oracle was installed at all."""
    if not ORACLES.is_dir():
        pytest.skip(f"{ORACLES} does not exist; make test installs it")
    folder = ORACLES / RELEASE / "clearvoice"
    before = dict(sys.modules)
    with _write_no_bytecode():
        try:
            sys.modules["torchinfo"] = _make_torchinfo()
            for name in _FOLDERS:
                package = types.ModuleType(f"clearvoice.{name}".rstrip("."))
                package.__path__ = [str(folder.joinpath(*name.split(".")))]
                sys.modules[package.__name__] = package
            modules = [importlib.import_module(f"clearvoice.models.mossformer2_{name}") for name in _FILES]
        finally:
            for name in sys.modules.keys() - before.keys():
                del sys.modules[name]
    for module in modules:
        assert Path(str(module.__file__)).is_relative_to(folder)
    return ClearvoiceRelease(*modules)


@contextlib.contextmanager
def _write_no_bytecode() -> Iterator[None]:
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _make_torchinfo() -> types.ModuleType:
    module = types.ModuleType("torchinfo")
    vars(module)["summary"] = None
    return module
