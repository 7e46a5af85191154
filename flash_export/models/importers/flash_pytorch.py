"""Checkpoints saved by lucidrains' flash-pytorch: what their weights tell, and what they cannot.

The reference modules carry that library's parameter names, so importing is a matter of the config: most of it
follows from the shapes; the rest are the constructor arguments that the model was trained with, and the release.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from flash_export.errors import CheckpointError, ConfigError
from flash_export.layers.position import NUM_BUCKETS
from flash_export.models.family import Family
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.gau import GauConfig, GauModel
from flash_export.models.importers.arguments import ImportedModel, check_expansion
from flash_export.models.importers.flash_pytorch_releases import DEFAULTS, REDUCE, select_releases
from flash_export.models.importers.junnyu import JUNNYU_ANCHOR, import_junnyu_flash
from flash_export.models.importers.rotary_tables import merge_rotary_tables
from flash_export.names import list_names
from flash_export.suggest import list_known

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from flash_export.models.importers.arguments import Argument, GivenArguments
    from flash_export.models.importers.flash_pytorch_releases import Release

    Tensors = Mapping[str, Tensor]

ANCHOR = "token_emb.weight"  # in every model once, so that it tells where in a file the model is
LAYER_KEY = re.compile(r"layers\.(\d{1,9})\.")
GAU_BIAS_KEY = "layers.{}.rel_pos_bias.relative_attention_bias.weight"
ARGUMENT_NAMES = {"vocab_size": "num_tokens", "chunk_size": "group_size", "qk_dim": "query_key_dim"}  # of our fields
OWN_FIELDS = ("mask_divisor",)  # ours, without a counterpart there
IGNORED_ARGUMENTS = ("attn_dropout", "dropout", "rel_pos_bias")  # the last of GAU, which has it whatever this says
# What weights cannot tell, with the field that it becomes.
FLASH_ARGUMENTS = {
    "group_size": "chunk_size",
    "causal": "causal",
    "shift_tokens": "shift_tokens",
    "laplace_attn_fn": "attention_fn",
    REDUCE: "sum_over_chunks",
}
GAU_ARGUMENTS = {"causal": "causal", "laplace_attn_fn": "attention_fn"}


@dataclass(frozen=True)
class _Dialect:
    """The values of all arguments that weights cannot tell, and which of them nobody told."""

    release: Release
    given: dict[str, Any]
    assumed: dict[str, Argument]

    def __getitem__(self, name: str) -> Any:
        return self.release.resolve(self.given, name)

    @property
    def attention_fn(self) -> str:
        return self.release.name_attention_fn(self.given)


def import_flash(tensors: Tensors, arguments: GivenArguments) -> ImportedModel:
    """Translate a ``FLASHTransformer`` state dict: one rotary table in place of one per layer.

    Args:
        tensors: The state dict, without prefixes; or that of JunnYu's FLASH, see :func:`import_junnyu_flash`.
        arguments: flash-pytorch's argument names, and ``mask_divisor``.

    Raises:
        ConfigError: An argument is unknown, missing, or contradicts the weights or the release.
        CheckpointError: The tensors that tell the sizes are missing.
    """
    if JUNNYU_ANCHOR in tensors:
        return import_junnyu_flash(tensors, arguments)
    sizes = _read_sizes(tensors)
    given = _check_arguments(arguments.values, known=FLASH_ARGUMENTS, sizes=sizes)
    names = [name for name in FLASH_ARGUMENTS if name != REDUCE or not given.get("causal", False)]
    dialect = _choose_dialect(arguments, given, names, required=("dim", "num_tokens", "depth"))
    with _speak_of_arguments():
        config = FlashConfig(
            **sizes,
            **_pick_own_fields(arguments),
            chunk_size=dialect["group_size"],
            causal=dialect["causal"],
            shift_tokens=dialect["shift_tokens"],
            attention_fn=dialect.attention_fn,
            sum_over_chunks=dialect[REDUCE],
        )
    return ImportedModel(config, merge_rotary_tables(tensors, "flash-pytorch"), dialect.assumed)


def import_gau(tensors: Tensors, arguments: GivenArguments) -> ImportedModel:
    """Translate the state dict of a stack of flash-pytorch's ``GAU`` layers.

    Layers of releases before 0.1.8 have no relative bias; one of zeros adds exactly nothing.

    Args:
        tensors: The state dict: ``token_emb``, ``abs_pos_emb``, ``layers.N`` and ``to_logits``.
        arguments: Constructor arguments of ``GAU``, and ``mask_divisor``.

    Raises:
        ConfigError: An argument is unknown, missing, or contradicts the weights or the release.
        CheckpointError: The tensors that tell the sizes are missing.
    """
    sizes = _read_sizes(tensors)
    given = _check_arguments(arguments.values, known=GAU_ARGUMENTS, sizes=sizes)
    biases = [GAU_BIAS_KEY.format(index) for index in range(min(sizes["depth"], len(tensors)))]
    has_bias = any(name in tensors for name in biases)
    dialect = _choose_dialect(arguments, given, list(GAU_ARGUMENTS), required=("dim",), gau_has_bias=has_bias)
    with _speak_of_arguments():
        config = GauConfig(
            **sizes, **_pick_own_fields(arguments), causal=dialect["causal"], attention_fn=dialect.attention_fn
        )
    added = {} if has_bias else {name: torch.zeros(NUM_BUCKETS, 1) for name in biases}
    return ImportedModel(config, {**tensors, **added}, dialect.assumed)


def _choose_dialect(
    arguments: GivenArguments,
    given: dict[str, Any],
    names: list[str],
    *,
    required: tuple[str, ...],
    gau_has_bias: bool | None = None,
) -> _Dialect:
    """Find the release, and a value for each argument.

    Arguments that include all ``required`` ones are a whole call of the constructor: Python would take the defaults for
    the others.

    Raises:
        ConfigError: An argument is missing, and nothing says that its default is meant.
    """
    releases = select_releases(arguments.library_version, given, gau_has_bias)
    newest = releases[-1]
    missing = [name for name in names if name not in given and name not in newest.fixed]
    if missing and not arguments.assume_defaults and not all(name in arguments.values for name in required):
        example = f"--set {missing[0]}={str(DEFAULTS[missing[0]]).lower()}"
        raise ConfigError(
            f"weights do not tell {', '.join(missing)}; give flash-pytorch's constructor arguments that the model was "
            f"trained with, with --config FILE.json or --set NAME=VALUE ({example}), or take that library's defaults "
            "with --assume-defaults"
        )
    assumed: dict[str, Argument] = {name: DEFAULTS[name] for name in missing}
    behaviours = [
        (release.name_attention_fn(given), *(release.resolve(given, name) for name in names)) for release in releases
    ]
    if any(behaviour != behaviours[-1] for behaviour in behaviours):
        assumed["library_version"] = newest.version
    return _Dialect(newest, given, assumed)


def _pick_own_fields(arguments: GivenArguments) -> dict[str, Any]:
    return {name: value for name, value in arguments.values.items() if name in OWN_FIELDS}


def _read_sizes(tensors: Tensors) -> dict[str, Any]:
    """Return the config fields that shapes and names tell."""

    def get_shape(name: str) -> tuple[int, int]:
        if name not in tensors or tensors[name].ndim != 2:
            found = list_names(sorted(tensors)) or "nothing"
            raise CheckpointError(
                f"no matrix {name!r} in the checkpoint (found {found}); give the state dict of a flash-pytorch model"
            )
        rows, columns = tensors[name].shape
        return rows, columns

    vocab_size, dim = get_shape(ANCHOR)
    return {
        "vocab_size": vocab_size,
        "dim": dim,
        "depth": 1 + max((int(match[1]) for name in tensors if (match := LAYER_KEY.match(name))), default=-1),
        "hidden_dim": get_shape("layers.0.to_hidden.0.weight")[0] // 2,
        "qk_dim": get_shape("layers.0.to_qk.0.weight")[0],
        "norm_type": "scalenorm" if "layers.0.norm.g" in tensors else "layernorm",
    }


def _check_arguments(
    arguments: Mapping[str, Any], *, known: Mapping[str, str], sizes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments that weights cannot tell, after comparing the others with the weights."""
    fields = ("vocab_size", "dim", "depth", "qk_dim", "norm_type")
    told_by_weights = {ARGUMENT_NAMES.get(field, field): sizes[field] for field in fields}
    for name, value in arguments.items():
        if name == "expansion_factor":
            check_expansion(name, value, sizes["dim"], sizes["hidden_dim"])
        elif name in told_by_weights:
            if value != told_by_weights[name]:
                raise ConfigError(
                    f"{name}={value!r}, but the weights say {told_by_weights[name]!r}; correct it or leave it out"
                )
        elif name == "add_residual":
            if value is not True:
                raise ConfigError(f"{name}={value!r} is not supported; only models whose layers add their input are")
        elif name not in known and name not in IGNORED_ARGUMENTS and name not in OWN_FIELDS:
            accepted = list_known(name, (*known, *told_by_weights, "expansion_factor"))
            raise ConfigError(
                f"unknown argument {name!r}; flash-pytorch's arguments are {accepted}; and ours is {OWN_FIELDS[0]}"
            )
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


FLASH = Family(
    FlashConfig,
    FlashModel,
    "flash-pytorch",
    import_flash,
    (JUNNYU_ANCHOR, ANCHOR),
    title="FLASH: gated attention in chunks and over all of them",
    task="tokens",
    lengths="any",
    asked=tuple(FLASH_ARGUMENTS),
    told_by=(r"(?<!mossformerM\.)layers\.\d+\.qk_offset_scale\.(?:gamma|weight)",),
    hidden_arguments=FLASH_ARGUMENTS,
)
GAU = Family(
    GauConfig,
    GauModel,
    "flash-pytorch",
    import_gau,
    (ANCHOR,),
    title="FLASH-Quad: a stack of gated attention units",
    task="tokens",
    lengths="any",
    asked=tuple(GAU_ARGUMENTS),
    told_by=(r"layers\.\d+\.offsetscale\.gamma",),
    hidden_arguments=GAU_ARGUMENTS,
)
