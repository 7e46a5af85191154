"""What goes into an importer and what comes out of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flash_export.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from flash_export.models.base import ModelConfig

Argument = bool | int | float | str  # as a config.json has them


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
        library: What the weights come from, where a family reads those of several libraries; None: the family's source.
    """

    config: ModelConfig
    tensors: dict[str, Tensor]
    assumed: dict[str, Argument]
    library: str | None = None


def check_number(name: str, value: Any) -> float:
    """Return an argument that is to be a number.

    Raises:
        ConfigError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name}={value!r} is not a number; give the value the model was built with")
    return float(value)


def check_expansion(name: str, factor: Any, dim: int, hidden_dim: int) -> None:
    """Compare a factor of the model width, which is rounded down, with the hidden width that the weights have.

    Raises:
        ConfigError: They differ, or it is no number.
    """
    meant = int(check_number(name, factor) * dim)
    if meant != hidden_dim:
        raise ConfigError(
            f"{name}={factor} means {meant} hidden channels, the weights have {hidden_dim}; correct it or leave it out"
        )
