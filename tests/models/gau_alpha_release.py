"""gau-alpha 0.0.3's own model files, without what the package depends on."""

from __future__ import annotations

from typing import Any

from flash_export.originals.gau_alpha import FILES
from tests.models.oracles import import_oracle

RELEASE = "gau-alpha==0.0.3"


def import_gau_alpha() -> Any:
    """Import the module of the models, and leave none behind; skips where no oracle was installed at all."""
    (module,) = import_oracle(RELEASE, FILES)
    return module
