"""The systems of *Transformer Quality in Linear Time* (arXiv 2202.10447), each at the same number of parameters.

Width, depth and heads are given; what is left over for the hidden channels is computed, so that a system has as many
parameters as a Transformer of the same width. A block of gated attention units is half a Transformer's, so that there
are two for one. What grows with the longest sequence (learnt positions, a Linformer's projections) is counted apart.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from flash_export.errors import ConfigError
from flash_export.models.registry import FAMILIES
from flash_export.suggest import list_known

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flash_export.models.base import ModelConfig

# Parameters of these names have a row for each position.
GROWING_PARAMETERS = ("pos_emb.weight", "proj_k", "proj_v")
# Depth of gated attention units to that of a Transformer: one of them has neither a second norm nor an MLP.
UNITS_PER_BLOCK = 2


@dataclass(frozen=True)
class Size:
    """What the systems of a study have in common.

    Attributes:
        dim: Model width.
        depth: Blocks of a Transformer; gated attention units are twice as many.
        num_heads: Heads of the multi-head systems.
        qk_dim: Width of the queries and keys of gated attention units.
        chunk_size: Tokens of a chunk, reach of a window; a block of a BigBird is half of it.
        parameters: How many each has, about; None: those of a Transformer whose MLP is four times as wide as it is.
        max_positions: Longest sequence of the systems that have one.
    """

    dim: int = 128
    depth: int = 5
    num_heads: int = 4
    qk_dim: int = 64
    chunk_size: int = 128
    parameters: int | None = None
    max_positions: int = 4096

    def __post_init__(self) -> None:
        """Check that there is something of each.

        Raises:
            ConfigError: A size is none.
        """
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{one.name}={value!r} is not usable; use a whole number from 1 on")


@dataclass(frozen=True)
class System:
    """A system of the study.

    Attributes:
        title: What reports call it.
        family: Model family.
        fields: Fields of its config that make it what it is.
        is_bidirectional_only: Whether it has no causal form.
    """

    title: str
    family: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    is_bidirectional_only: bool = False

    @property
    def has_heads(self) -> bool:
        """Whether it is a multi-head model; the others are gated attention units."""
        return self.family not in ("flash", "gau")

    @property
    def width_field(self) -> str:
        """The field that is left over for the parameters that others have elsewhere."""
        return "ff_dim" if self.has_heads else "hidden_dim"


SYSTEMS: dict[str, System] = {
    "transformer": System("Transformer", "transformer", {"ff_type": "mlp", "positions": "sinusoid"}),
    "transformer-glu": System("Transformer with GLU", "transformer", {"ff_type": "swiglu", "positions": "sinusoid"}),
    "transformer++": System("Transformer++", "transformer", {"ff_type": "swiglu", "positions": "rotary"}),
    "gau": System("GAU (FLASH-Quad)", "gau", {"norm_type": "scalenorm"}),
    "flash": System("FLASH", "flash", {"branches": "both"}),
    "mc-tfm++": System("MC-TFM++", "mc_tfm", {"ff_type": "swiglu", "positions": "rotary"}),
    "flash-local": System("FLASH, local only", "flash", {"branches": "local"}),
    "flash-global": System("FLASH, global only", "flash", {"branches": "global"}),
    "performer": System("Performer", "performer"),
    "linformer": System("Linformer", "linformer", {"shares_kv": True}, is_bidirectional_only=True),
    "longformer": System("Longformer", "longformer"),
    "bigbird": System("BigBird", "bigbird"),
}


class ParameterCount(NamedTuple):
    """Parameters of a model: those that it has at any length, and those that grow with the longest one."""

    constant: int
    growing: int


def get_system(name: str) -> System:
    """Return the system called ``name``.

    Raises:
        ConfigError: There is none.
    """
    if name not in SYSTEMS:
        raise ConfigError(f"unknown system {name!r}; there are {list_known(name, SYSTEMS)}")
    return SYSTEMS[name]


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Count the parameters of a model of this config, without making it."""
    with torch.device("meta"):
        model = FAMILIES[config.model_type].model_class(config)
    growing = sum(
        parameter.numel() for name, parameter in model.named_parameters() if name.endswith(GROWING_PARAMETERS)
    )
    return ParameterCount(model.count_parameters() - growing, growing)


def describe_difference(config: ModelConfig, name: str, *, causal: bool) -> str | None:
    """Say in what a model is not a system, whatever its size; None if it is one."""
    system, values = get_system(name), config.to_dict()
    wanted = {"model_type": system.family, **system.fields}
    if not system.is_bidirectional_only:
        wanted["causal"] = causal
    for field_name, value in wanted.items():
        if values.get(field_name) != value:
            return f"{field_name} is {values.get(field_name)!r}, wanted {value!r}"
    return None


def build_config(name: str, size: Size, *, vocab_size: int, causal: bool) -> ModelConfig:
    """Return the config of a system whose parameters are as many as those of the others of this size.

    Raises:
        ConfigError: There is no such system, it has no causal form, or its other parts are too large already.
    """
    system = get_system(name)
    if causal and system.is_bidirectional_only:
        raise ConfigError(f"system {name} has no causal form; give objective masked")
    wanted = size.parameters
    if wanted is None:
        transformer = _build_config(SYSTEMS["transformer"], size, 4 * size.dim, vocab_size=vocab_size, causal=causal)
        wanted = count_parameters(transformer).constant
    return _fit_width(name, size, wanted, vocab_size=vocab_size, causal=causal)


def _fit_width(name: str, size: Size, wanted: int, *, vocab_size: int, causal: bool) -> ModelConfig:
    """Return the config whose number of parameters, which is linear in the width, is nearest."""
    system = SYSTEMS[name]
    one, two = (
        count_parameters(_build_config(system, size, width, vocab_size=vocab_size, causal=causal)).constant
        for width in (1, 2)
    )
    width = 1 + round((wanted - one) / (two - one))
    if width < 1:
        raise ConfigError(
            f"parameters={wanted:,} are fewer than the {one:,} that {name} has beside its hidden channels; use more, "
            "or a smaller dim"
        )
    return _build_config(system, size, width, vocab_size=vocab_size, causal=causal)


def _build_config(system: System, size: Size, width: int, *, vocab_size: int, causal: bool) -> ModelConfig:
    fields: dict[str, Any] = {"vocab_size": vocab_size, "dim": size.dim, "causal": causal, system.width_field: width}
    if system.has_heads:
        fields |= {"depth": size.depth, "num_heads": size.num_heads, "max_positions": size.max_positions}
    else:
        fields |= {"depth": UNITS_PER_BLOCK * size.depth, "qk_dim": size.qk_dim}
    sized = {
        "flash": {"chunk_size": size.chunk_size},
        "mc_tfm": {"chunk_size": size.chunk_size},
        "longformer": {"reach": size.chunk_size},
        "bigbird": {"block_size": max(size.chunk_size // 2, 1)},
    }
    kind = FAMILIES[system.family].config_class
    return kind.from_dict({**fields, **sized.get(system.family, {}), **system.fields})
