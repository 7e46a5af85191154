"""The model families, by the name that ``config.json`` carries as ``model_type``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flash_export.errors import ConfigError
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.flash_pytorch import import_flash, import_gau
from flash_export.models.gau import GauConfig, GauModel
from flash_export.models.importers.mmpose import HIDDEN_ARGUMENTS, import_rtmpose
from flash_export.models.rtmpose_gau import RtmposeGauConfig, RtmposeGauModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from flash_export.models.base import ModelConfig, ReferenceModel


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        config_class: Its hyper-parameters.
        model_class: Its reference module, built from a config.
        source: Library whose checkpoints ``import_weights`` reads.
        import_weights: Turns that library's tensors and arguments into our config and tensors.
        hidden_arguments: Arguments of that library which weights cannot tell.
    """

    config_class: type[ModelConfig]
    model_class: Callable[[Any], ReferenceModel]
    source: str
    import_weights: Callable[[Mapping[str, Tensor], Mapping[str, Any]], tuple[ModelConfig, dict[str, Tensor]]]
    hidden_arguments: tuple[str, ...]


FAMILIES: dict[str, Family] = {
    "flash": Family(
        FlashConfig,
        FlashModel,
        "flash-pytorch",
        import_flash,
        ("group_size", "causal", "shift_tokens", "laplace_attn_fn", "reduce_group_non_causal_attn"),
    ),
    "gau": Family(GauConfig, GauModel, "flash-pytorch", import_gau, ("causal", "laplace_attn_fn")),
    "rtmpose_gau": Family(RtmposeGauConfig, RtmposeGauModel, "mmpose", import_rtmpose, HIDDEN_ARGUMENTS),
}


def get_family(name: object) -> Family:
    """Return the family called ``name``.

    Raises:
        ConfigError: There is no such family.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise ConfigError(f"unknown model family {name!r}; this version knows {', '.join(FAMILIES)}")
    return FAMILIES[name]
