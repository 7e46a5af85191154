"""The model families, by the name that ``config.json`` carries as ``model_type``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flash_export.errors import ConfigError
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.gau import GauConfig, GauModel
from flash_export.models.importers.flash_pytorch import (
    ANCHOR,
    FLASH_ARGUMENTS,
    GAU_ARGUMENTS,
    import_flash,
    import_gau,
)
from flash_export.models.importers.mmpose import ANCHOR as MMPOSE_ANCHOR
from flash_export.models.importers.mmpose import import_mmpose
from flash_export.models.rtmpose_gau import RtmposeGauConfig, RtmposeGauModel
from flash_export.suggest import list_known

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from flash_export.models.base import ModelConfig, ReferenceModel
    from flash_export.models.importers.arguments import GivenArguments, ImportedModel


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        config_class: Its hyper-parameters.
        model_class: Its reference module, built from a config.
        source: Library whose checkpoints ``import_weights`` reads.
        import_weights: Turns that library's tensors and arguments into our config and tensors.
        hidden_arguments: Arguments of that library which weights cannot tell, with the config field each becomes.
        anchor: A tensor that every model has once, by the library's name and by ours.
    """

    config_class: type[ModelConfig]
    model_class: Callable[[Any], ReferenceModel]
    source: str
    import_weights: Callable[[Mapping[str, Tensor], GivenArguments], ImportedModel]
    hidden_arguments: Mapping[str, str]
    anchor: str


FAMILIES: dict[str, Family] = {
    "flash": Family(FlashConfig, FlashModel, "flash-pytorch", import_flash, FLASH_ARGUMENTS, ANCHOR),
    "gau": Family(GauConfig, GauModel, "flash-pytorch", import_gau, GAU_ARGUMENTS, ANCHOR),
    "rtmpose_gau": Family(RtmposeGauConfig, RtmposeGauModel, "mmpose", import_mmpose, {}, MMPOSE_ANCHOR),
}


def get_family(name: object) -> Family:
    """Return the family called ``name``.

    Raises:
        ConfigError: There is no such family.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise ConfigError(f"unknown model family {name!r}; this version knows {list_known(name, FAMILIES)}")
    return FAMILIES[name]
