"""The model families, by the name that ``config.json`` carries as ``model_type``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.errors import ConfigError
from flash_export.models.importers.clearvoice import MOSSFORMER2
from flash_export.models.importers.flash_pytorch import FLASH, GAU
from flash_export.models.importers.gau_alpha import GAU_ALPHA
from flash_export.models.importers.mmpose import RTMPOSE_GAU
from flash_export.suggest import list_known

if TYPE_CHECKING:
    from flash_export.models.family import Family

FAMILIES: dict[str, Family] = {
    "flash": FLASH,
    "gau": GAU,
    "rtmpose_gau": RTMPOSE_GAU,
    "gau_alpha": GAU_ALPHA,
    "mossformer2": MOSSFORMER2,
}


def get_family(name: object) -> Family:
    """Return the family called ``name``.

    Raises:
        ConfigError: There is no such family.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise ConfigError(f"unknown model family {name!r}; this version knows {list_known(name, FAMILIES)}")
    return FAMILIES[name]
