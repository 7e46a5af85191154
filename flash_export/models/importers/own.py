"""The families that are no other library's: their weights are folders that this tool wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.config import CONFIG_FILE, WEIGHTS_FILE
from flash_export.errors import ConfigError
from flash_export.models.bigbird import BigBirdConfig, BigBirdModel
from flash_export.models.family import Family
from flash_export.models.linformer import LinformerConfig, LinformerModel
from flash_export.models.longformer import LongformerConfig, LongformerModel
from flash_export.models.mc_tfm import McTfmConfig, McTfmModel
from flash_export.models.performer import PerformerConfig, PerformerModel
from flash_export.models.transformer import TransformerConfig, TransformerModel

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

    from torch import Tensor

    from flash_export.models.importers.arguments import GivenArguments
    from flash_export.models.multihead import MultiheadConfig, MultiheadModel

SOURCE = "flash-export"
ANCHOR = "token_emb.weight"
ANY_LENGTH = "any; with learnt positions, as many as there are"


def refuse_foreign_weights(tensors: Mapping[str, Tensor], given: GivenArguments) -> NoReturn:
    """Say how weights of these families are given.

    Raises:
        ConfigError: Always.
    """
    raise ConfigError(
        f"weights of this family are read from a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, as save_pretrained of "
        "its model writes it; give that folder"
    )


def _describe(
    config_class: type[MultiheadConfig], model_class: type[MultiheadModel], title: str, lengths: str = ANY_LENGTH
) -> Family:
    return Family(
        config_class,
        model_class,
        SOURCE,
        refuse_foreign_weights,
        (ANCHOR,),
        title=title,
        task="tokens",
        lengths=lengths,
        asked=(),
        told_by=(),
    )


TRANSFORMER = _describe(
    TransformerConfig, TransformerModel, "Transformer: multi-head softmax attention, with an MLP or a gated linear unit"
)
MC_TFM = _describe(McTfmConfig, McTfmModel, "MC-TFM++: mixed chunk attention in a multi-head Transformer")
PERFORMER = _describe(PerformerConfig, PerformerModel, "Performer: softmax attention by positive random features")
LINFORMER = _describe(
    LinformerConfig, LinformerModel, "Linformer: keys and values projected to a fixed number", "up to its positions"
)
LONGFORMER = _describe(LongformerConfig, LongformerModel, "Longformer: softmax attention in a sliding window")
BIGBIRD = _describe(
    BigBirdConfig, BigBirdModel, "BigBird: window, global and random blocks", "up to the blocks that were drawn"
)
