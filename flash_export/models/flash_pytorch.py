"""Checkpoints saved by lucidrains' flash-pytorch: what their weights tell, and what they cannot.

The reference modules carry that library's parameter names, so importing is a matter of the config: most of it
follows from the shapes; the rest must be given as the constructor arguments that the model was trained with.
"""

from __future__ import annotations

import math
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from flash_export.errors import CheckpointError, ConfigError
from flash_export.models.flash import FlashConfig
from flash_export.models.gau import GauConfig
from flash_export.suggest import list_known

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    Tensors = Mapping[str, Tensor]

LAYER_KEY = re.compile(r"layers\.(\d+)\.")
ROTARY_KEY = re.compile(r"layers\.\d+\.rotary_pos_emb\.freqs")
ARGUMENT_NAMES = {"vocab_size": "num_tokens", "chunk_size": "group_size", "qk_dim": "query_key_dim"}  # of our fields
IGNORED_ARGUMENTS = ("attn_dropout", "dropout")


def import_flash(tensors: Tensors, arguments: Mapping[str, Any]) -> tuple[FlashConfig, dict[str, Tensor]]:
    """Translate a ``FLASHTransformer`` state dict and its constructor arguments.

    Args:
        tensors: The state dict, without prefixes.
        arguments: flash-pytorch's argument names; left out ones have that library's defaults.

    Returns:
        Our config, and the tensors under our names: one rotary table in place of one a layer.

    Raises:
        ConfigError: An argument is unknown, or contradicts the weights.
        CheckpointError: The tensors that tell the sizes are missing.
    """
    sizes = _read_sizes(tensors)
    given = _check_arguments(
        arguments,
        known=("group_size", "causal", "shift_tokens", "laplace_attn_fn", "reduce_group_non_causal_attn"),
        sizes=sizes,
    )
    with _speak_of_arguments():
        config = FlashConfig(
            **sizes,
            chunk_size=given.get("group_size", 256),
            causal=given.get("causal", False),
            shift_tokens=given.get("shift_tokens", True),
            attention_fn=_name_attention_fn(given),
            sum_over_chunks=given.get("reduce_group_non_causal_attn", True),
        )
    return config, _merge_rotary_tables(tensors)


def import_gau(tensors: Tensors, arguments: Mapping[str, Any]) -> tuple[GauConfig, dict[str, Tensor]]:
    """Translate the state dict of a stack of flash-pytorch's ``GAU`` layers.

    Args:
        tensors: The state dict: ``token_emb``, ``abs_pos_emb``, ``layers.N`` and ``to_logits``.
        arguments: Constructor arguments of ``GAU``; left out ones have that library's defaults.

    Returns:
        Our config, and the tensors, whose names are the same.

    Raises:
        ConfigError: An argument is unknown, or contradicts the weights.
        CheckpointError: The tensors that tell the sizes are missing.
    """
    sizes = _read_sizes(tensors)
    given = _check_arguments(arguments, known=("causal", "laplace_attn_fn"), sizes=sizes)
    with _speak_of_arguments():
        config = GauConfig(**sizes, causal=given.get("causal", False), attention_fn=_name_attention_fn(given))
    return config, dict(tensors)


def _read_sizes(tensors: Tensors) -> dict[str, Any]:
    """Return the config fields that shapes and names tell."""

    def get_shape(name: str) -> tuple[int, int]:
        if name not in tensors or tensors[name].ndim != 2:
            found = ", ".join(sorted(tensors)[:4]) or "nothing"
            raise CheckpointError(
                f"no matrix {name!r} in the checkpoint (found {found}, ...); "
                "give the state dict of a flash-pytorch model"
            )
        rows, columns = tensors[name].shape
        return rows, columns

    vocab_size, dim = get_shape("token_emb.weight")
    return {
        "vocab_size": vocab_size,
        "dim": dim,
        "depth": 1 + max((int(match[1]) for name in tensors if (match := LAYER_KEY.match(name))), default=-1),
        "hidden_dim": get_shape("layers.0.to_hidden.0.weight")[0] // 2,
        "qk_dim": get_shape("layers.0.to_qk.0.weight")[0],
        "norm_type": "scalenorm" if "layers.0.norm.g" in tensors else "layernorm",
    }


def _check_arguments(
    arguments: Mapping[str, Any], *, known: tuple[str, ...], sizes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments that weights cannot tell, after comparing the others with the weights."""
    fields = ("vocab_size", "dim", "depth", "qk_dim", "norm_type")
    told_by_weights = {ARGUMENT_NAMES.get(field, field): sizes[field] for field in fields}
    for name, value in arguments.items():
        if name == "expansion_factor":
            hidden_dim = int(_check_number(name, value) * sizes["dim"])
            if hidden_dim != sizes["hidden_dim"]:
                raise ConfigError(
                    f"expansion_factor={value} means {hidden_dim} hidden channels, the weights have "
                    f"{sizes['hidden_dim']}; correct it or leave it out"
                )
        elif name in told_by_weights:
            if value != told_by_weights[name]:
                raise ConfigError(
                    f"{name}={value!r}, but the weights say {told_by_weights[name]!r}; correct it or leave it out"
                )
        elif name == "add_residual":
            if value is not True:
                raise ConfigError(f"{name}={value!r} is not supported; only models whose layers add their input are")
        elif name not in known and name not in IGNORED_ARGUMENTS:
            accepted = list_known(name, (*known, *told_by_weights, "expansion_factor"))
            raise ConfigError(f"unknown argument {name!r}; flash-pytorch's arguments are {accepted}")
    given = {name: value for name, value in arguments.items() if name in known}
    for name, value in given.items():
        if name != "group_size" and not isinstance(value, bool):
            raise ConfigError(f"{name}={value!r} is not a boolean; use true or false")
    return given


@contextmanager
def _speak_of_arguments() -> Iterator[None]:
    """Let the config's errors, which start with a field, start with the argument that the user knows it by."""
    try:
        yield
    except ConfigError as error:
        field, equals, rest = str(error).partition("=")
        raise ConfigError(ARGUMENT_NAMES.get(field, field) + equals + rest) from error


def _check_number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name}={value!r} is not a number; give the value the model was built with")
    return float(value)


def _name_attention_fn(given: Mapping[str, Any]) -> str:
    return "laplace" if given.get("laplace_attn_fn", False) else "relu2"


def _merge_rotary_tables(tensors: Tensors) -> dict[str, Tensor]:
    """Replace the table of each layer, which flash-pytorch shares between them, by one."""
    tables = {name: tensor for name, tensor in tensors.items() if ROTARY_KEY.fullmatch(name)}
    merged = {name: tensor for name, tensor in tensors.items() if name not in tables}
    if tables:
        first_name, first = next(iter(tables.items()))
        for name, table in tables.items():
            if not torch.equal(table, first):
                raise CheckpointError(
                    f"{name} differs from {first_name}; flash-pytorch shares one table between all layers, "
                    "so these are not the weights of one of its models"
                )
        merged["rotary_pos_emb.freqs"] = first
    return merged
