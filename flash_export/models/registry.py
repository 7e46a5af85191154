"""The model families, by the name that ``config.json`` carries as ``model_type``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from flash_export.errors import ConfigError
from flash_export.models.importers.clearvoice import MOSSFORMER2
from flash_export.models.importers.flash_pytorch import FLASH, GAU
from flash_export.models.importers.gau_alpha import GAU_ALPHA
from flash_export.models.importers.junnyu import FLASH_QUAD
from flash_export.models.importers.mmpose import RTMPOSE_GAU
from flash_export.models.importers.own import BIGBIRD, LINFORMER, LONGFORMER, MC_TFM, PERFORMER, TRANSFORMER
from flash_export.suggest import list_known

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flash_export.models.family import Family

FAMILIES: dict[str, Family] = {
    "flash": FLASH,
    "gau": GAU,
    "rtmpose_gau": RTMPOSE_GAU,
    "gau_alpha": GAU_ALPHA,
    "flash_quad": FLASH_QUAD,
    "mossformer2": MOSSFORMER2,
    "transformer": TRANSFORMER,
    "mc_tfm": MC_TFM,
    "performer": PERFORMER,
    "linformer": LINFORMER,
    "longformer": LONGFORMER,
    "bigbird": BIGBIRD,
}


def get_family(name: object) -> Family:
    """Return the family called ``name``.

    Raises:
        ConfigError: There is no such family.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise ConfigError(f"unknown model family {name!r}; this version knows {list_known(name, FAMILIES)}")
    return FAMILIES[name]


def recognise_family(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the family whose models alone have tensors of such names, and one of these.

    Args:
        names: Dotted names of all tensors in a file, below whatever keys and prefixes.

    Returns:
        Name of the family, and name of the tensor that told it; None if no family or several could be meant.
    """
    patterns = {
        family: re.compile(rf"(?:.*\.)?(?:{'|'.join(one.told_by)})") for family, one in FAMILIES.items() if one.told_by
    }
    found: dict[str, str] = {}
    for name in names:
        for family, pattern in patterns.items():
            if family not in found and pattern.fullmatch(name):
                found[family] = name
    return next(iter(found.items())) if len(found) == 1 else None
