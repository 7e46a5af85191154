"""What a model family is, beside its config and reference: whose checkpoints it reads."""

from __future__ import annotations

from dataclasses import dataclass, field
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
        anchors: Names of a tensor that every model has once, by which its weights are found in a file: ours and the
            library's. The first that a file has counts, so that of two names one of which ends in the other the longer
            stands first.
        title: What its models are, in a few words.
        task: What they are for: ``tokens``, ``signal``, ``keypoints``.
        lengths: Which lengths a model takes, in words.
        asked: Arguments of that library which weights cannot tell.
        told_by: Regular expressions for the ends of tensor names, in the library's layouts, that models of no other
            family have.
        hidden_arguments: Those of ``asked`` that become a config field of the same meaning, with that field.
        indices: Names of tensors of whole numbers that the library stores beside its weights; no other may hold any.
    """

    config_class: type[ModelConfig]
    model_class: Callable[[Any], ReferenceModel]
    source: str
    import_weights: Callable[[Mapping[str, Tensor], GivenArguments], ImportedModel]
    anchors: tuple[str, ...]
    title: str
    task: str
    lengths: str
    asked: tuple[str, ...]
    told_by: tuple[str, ...]
    hidden_arguments: Mapping[str, str] = field(default_factory=dict)
    indices: frozenset[str] = frozenset()
