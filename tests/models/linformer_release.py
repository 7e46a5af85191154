"""linformer 0.2.3's own model file."""

from __future__ import annotations

from typing import Any

from flash_export.originals.installed import ModelFiles
from tests.models.oracles import import_oracle

RELEASE = "linformer==0.2.3"
FILES = ModelFiles("linformer", ("linformer",))


def import_linformer() -> Any:
    """Import the module, and leave none behind; skips where no oracle was installed at all."""
    (module,) = import_oracle(RELEASE, FILES)
    return module
