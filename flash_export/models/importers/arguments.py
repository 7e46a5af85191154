"""What goes into an importer and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from flash_export.models.base import ModelConfig


@dataclass(frozen=True)
class GivenArguments:
    """What the user says about foreign weights.

    Attributes:
        values: Constructor arguments by the library's names, and fields of ours that it has no argument for.
        library_version: Release that the weights were trained with; None: whichever the rest fits, the newest first.
        assume_defaults: Whether the library's defaults stand for what neither weights nor ``values`` tell.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    library_version: str | None = None
    assume_defaults: bool = False


@dataclass(frozen=True)
class ImportedModel:
    """Foreign weights in our terms.

    Attributes:
        config: The model's config.
        tensors: Its tensors, by our names.
        assumed: Arguments that were taken from the library's defaults.
    """

    config: ModelConfig
    tensors: dict[str, Tensor]
    assumed: dict[str, bool | int | str]
