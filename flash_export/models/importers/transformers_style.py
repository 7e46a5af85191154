"""What importers of models in the style of transformers share: names, a ``config.json``, a decoder that is tied."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from flash_export.errors import CheckpointError, ConfigError
from flash_export.names import list_names, show_name
from flash_export.suggest import list_known

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from flash_export.models.importers.arguments import Argument, GivenArguments

    Tensors = Mapping[str, Tensor]

# They do not change what is predicted; neither do the notes that transformers leaves in a config.
IGNORED = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "classifier_dropout", "initializer_range"),
    *("gradient_checkpointing", "max_position_embeddings", "pad_token_id", "model_type", "architectures"),
    *("torch_dtype", "dtype", "transformers_version", "_name_or_path", "_attn_implementation_autoset"),
)


@dataclass(frozen=True)
class ArgumentRules:
    """Which arguments the config of a model may have, besides those that repeat what weights tell.

    Attributes:
        library: What messages call it.
        asked: What weights do not tell, with the library's defaults.
        fixed: The values that an argument may have: what all models that are supported have in common.
        own_fields: Fields of ours that the library has no argument for.
        checked: Arguments that the importer itself compares with the weights.
    """

    library: str
    asked: Mapping[str, Argument]
    fixed: Mapping[str, tuple[Any, ...]]
    own_fields: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()

    def check(self, arguments: GivenArguments, told: Mapping[str, Any]) -> dict[str, Argument]:
        """Compare arguments with the weights, and with what all models have in common.

        Args:
            arguments: The model's config.
            told: What weights tell, by the library's names.

        Returns:
            What is assumed: the defaults of arguments that were asked for and not given.

        Raises:
            ConfigError: An argument is missing, unknown, of another kind of model, or contradicts the weights; or a
                release is named.
        """
        if arguments.library_version is not None:
            raise ConfigError(
                f"library_version={arguments.library_version}, but the weights of {self.library} are read without a "
                "release; leave --library-version out"
            )
        for name, value in arguments.values.items():
            self._check_one(name, value, told)
        missing = [name for name in self.asked if name not in arguments.values]
        if missing and not arguments.assume_defaults:
            raise ConfigError(
                f"weights do not tell {', '.join(missing)}; give the config.json that lies beside them with --config "
                "config.json, or take that library's defaults with --assume-defaults"
            )
        return {name: self.asked[name] for name in missing}

    def _check_one(self, name: str, value: Any, told: Mapping[str, Any]) -> None:
        if name in told:
            if value != told[name]:
                raise ConfigError(f"{name}={value!r}, but the weights say {told[name]!r}; correct it or leave it out")
        elif name in self.fixed:
            if value not in self.fixed[name]:
                raise ConfigError(
                    f"{name}={value!r} is not supported; only models of {name} "
                    f"{' or '.join(map(str, self.fixed[name]))} are"
                )
        elif name not in (*self.asked, *self.checked, *self.own_fields, *IGNORED):
            accepted = list_known(name, dict.fromkeys((*told, *self.checked, *self.asked, *self.fixed)))
            ours = f"; and ours is {', '.join(self.own_fields)}" if self.own_fields else ""
            raise ConfigError(f"unknown argument {name!r}; {self.library}'s are {accepted}{ours}")


def rename_tensors(tensors: Tensors, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors by our names; whoever matches them with the model refuses those that keep theirs.

    Args:
        tensors: By the library's names.
        names: Our names by those of the library, regular expressions and what they expand to.

    Raises:
        CheckpointError: Two tensors have one name of ours.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        matches = (match.expand(ours) for theirs, ours in names.items() if (match := re.fullmatch(theirs, name)))
        own = next(matches, name)
        if own in renamed:
            raise CheckpointError(f"{show_name(name)} is there twice, by two names; save the state dict of one model")
        renamed[own] = tensor
    return renamed


def take_tied(tensors: dict[str, Tensor], decoder: str, embedding: str, library: str) -> None:
    """Remove the decoder, after comparing it with the embedding that it is tied to.

    Raises:
        CheckpointError: They differ.
    """
    if decoder in tensors and embedding in tensors and not torch.equal(tensors[decoder], tensors[embedding]):
        raise CheckpointError(
            f"the decoder differs from the word embeddings; {library} has one matrix for both, so these are not the "
            "weights of such a model"
        )
    tensors.pop(decoder, None)


def get_shape(tensors: Tensors, name: str, axes: str, source: str) -> tuple[int, ...]:
    """Return the shape of a tensor that tells sizes.

    Args:
        tensors: By our names.
        name: Of the tensor.
        axes: A letter for each axis.
        source: What to give instead, for the message.

    Raises:
        CheckpointError: There is no such tensor.
    """
    if name not in tensors or tensors[name].ndim != len(axes):
        found, kind = list_names(sorted(tensors)) or "nothing", "vector" if len(axes) == 1 else "matrix"
        raise CheckpointError(f"no {kind} for {name!r} in the checkpoint (found {found}); {source}")
    return tuple(tensors[name].shape)


def count_layers(tensors: Tensors) -> int:
    """Return the number of ``layers.N``."""
    indices = (int(match[1]) for name in tensors if (match := re.match(r"layers\.(\d{1,9})\.", name)))
    return 1 + max(indices, default=-1)
