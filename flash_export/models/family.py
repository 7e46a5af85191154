"""What a model family is, beside its config and reference: whose checkpoints it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
        source: Library whose checkpoints ``import_weights`` reads, unless it says that they are of another.
        import_weights: Turns that library's tensors and arguments into our config and tensors.
        hidden_arguments: Arguments of that library which weights cannot tell, with the config field each becomes.
        anchors: Names of a tensor that every model has once, by which its weights are found in a file: ours and the
            library's. The first that a file has counts, so that of two names one of which ends in the other the longer
            stands first.
        indices: Names of tensors of whole numbers that the library stores beside its weights; no other may hold any.
    """

    config_class: type[ModelConfig]
    model_class: Callable[[Any], ReferenceModel]
    source: str
    import_weights: Callable[[Mapping[str, Tensor], GivenArguments], ImportedModel]
    hidden_arguments: Mapping[str, str]
    anchors: tuple[str, ...]
    indices: frozenset[str] = frozenset()
