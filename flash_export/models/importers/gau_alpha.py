"""Checkpoints of GAU-alpha, as the libraries gau-alpha and bert4torch name their tensors.

Sizes follow from the shapes. What weights cannot tell has one value in every published model. It is asked for all the
same, as the ``config.json`` that lies beside the weights, because the layer has other values too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from flash_export.errors import CheckpointError, ConfigError
from flash_export.models.family import Family
from flash_export.models.gau_alpha import NORM_EPS, GauAlphaConfig, GauAlphaModel
from flash_export.models.importers.arguments import ImportedModel
from flash_export.names import list_names
from flash_export.suggest import list_known

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from flash_export.models.importers.arguments import GivenArguments

    Tensors = Mapping[str, Tensor]

# With the head beside it; without one, and in bert4torch; ours.
ANCHORS = ("gau_alpha.embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight", "token_emb.weight")
DECODER, GAIN = "decoder.weight", "gain"
# Our names by those of a library.
GAU_ALPHA_NAMES = {
    r"(?:gau_alpha\.)?embeddings\.word_embeddings\.weight": "token_emb.weight",
    r"(?:gau_alpha\.)?embeddings\.token_type_embeddings\.weight": "token_type_emb.weight",
    r"(?:gau_alpha\.)?encoder\.layer\.(\d{1,9})\.gau\.([io]_dense|[qk]_scaleoffset)\.weight": r"layers.\1.\2.weight",
    r"cls\.predictions\.decoder\.weight": DECODER,
}
BERT4TORCH_NAMES = {
    r"embeddings\.word_embeddings\.weight": "token_emb.weight",
    r"embeddings\.segment_embeddings\.weight": "token_type_emb.weight",
    r"encoderLayer\.(\d{1,9})\.gau\.([io]_dense)\.weight": r"layers.\1.\2.weight",
    r"encoderLayer\.(\d{1,9})\.gau\.offsetscale\.gamma": r"layers.\1.gamma",
    r"(embeddings\.layerNorm|encoderLayer\.\d{1,9}\.layerNorm1)\.weight": rf"\1.{GAIN}",
    r"mlmDecoder\.weight": DECODER,
}
BERT4TORCH_KEY = re.compile(r"encoderLayer\.\d{1,9}\.")
LAYER_KEY = re.compile(r"layers\.(\d{1,9})\.")
# What weights cannot tell, with the libraries' defaults. For all but the first bert4torch has no argument.
DEFAULTS: dict[str, bool | int | str] = {
    "hidden_act": "swish",
    "normalization": "softmax_plus",
    "attention_scale": True,
}
# What all models have in common.
FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("swish", "silu"),
    "normalization": ("softmax_plus",),
    "attention_scale": (True,),
    "use_bias": (False,),
    "layer_norm_eps": (NORM_EPS,),
    "tie_word_embeddings": (True,),
    "num_attention_heads": (1,),
}
SIZE_ARGUMENTS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "embedding_size": "dim",
    "num_hidden_layers": "depth",
    "intermediate_size": "hidden_dim",
    "attention_key_size": "qk_dim",
    "type_vocab_size": "num_token_types",
}
OWN_FIELDS = ("mask_dialect",)
# They do not change what is predicted; neither do the notes that transformers leaves in a config.
IGNORED = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "initializer_range"),
    *("gradient_checkpointing", "max_position_embeddings", "pad_token_id"),
    *("model_type", "architectures", "torch_dtype", "dtype", "transformers_version", "_name_or_path"),
)


def import_gau_alpha(tensors: Tensors, arguments: GivenArguments) -> ImportedModel:
    """Translate the state dict of a masked language model, or of its encoder: the decoder is tied to the embedding.

    Args:
        tensors: The state dict, by the names of gau-alpha or of bert4torch.
        arguments: The model's ``config.json``, and ``mask_dialect``.

    Raises:
        ConfigError: An argument is missing, unknown, of another kind of model, or contradicts the weights; or a release
            is named.
        CheckpointError: The tensors that tell the sizes are missing; the decoder is not the embedding; or a norm has
            learned something.
    """
    if arguments.library_version is not None:
        raise ConfigError(
            f"library_version={arguments.library_version}, but the weights of GAU-alpha are read without a release; "
            "leave --library-version out"
        )
    is_bert4torch = any(BERT4TORCH_KEY.match(name) for name in tensors)
    own = _drop_gains(
        _drop_decoder(_join_heads(_rename(tensors, BERT4TORCH_NAMES if is_bert4torch else GAU_ALPHA_NAMES)))
    )
    sizes = _read_sizes(own)
    _check_arguments(arguments.values, sizes)
    asked = ("hidden_act",) if is_bert4torch else tuple(DEFAULTS)
    missing = [name for name in asked if name not in arguments.values]
    if missing and not arguments.assume_defaults:
        raise ConfigError(
            f"weights do not tell {', '.join(missing)}; give the config.json that lies beside them with --config "
            "config.json, or take that library's defaults with --assume-defaults"
        )
    own_fields = {name: value for name, value in arguments.values.items() if name in OWN_FIELDS}
    config = GauAlphaConfig(**sizes, **own_fields)
    return ImportedModel(config, own, {name: DEFAULTS[name] for name in missing})


def _rename(tensors: Tensors, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors by our names; whoever matches them with the model refuses those that keep theirs."""
    renamed = {}
    for name, tensor in tensors.items():
        matches = (match.expand(ours) for theirs, ours in names.items() if (match := re.fullmatch(theirs, name)))
        renamed[next(matches, name)] = tensor
    return renamed


def _join_heads(tensors: Tensors) -> dict[str, Tensor]:
    """Return the factors of queries and keys, which gau-alpha keeps apart, as one tensor of two rows."""
    joined = dict(tensors)
    for name, q in tensors.items():
        layer = name.removesuffix(".q_scaleoffset.weight")
        k = tensors.get(f"{layer}.k_scaleoffset.weight")
        if k is not None and q.shape == k.shape:
            del joined[name], joined[f"{layer}.k_scaleoffset.weight"]
            joined[f"{layer}.gamma"] = torch.stack((q, k))
    return joined


def _drop_decoder(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without the decoder, after comparing it with the embedding that it is tied to."""
    decoder, embedding = tensors.get(DECODER), tensors.get("token_emb.weight")
    if decoder is not None and embedding is not None and not torch.equal(decoder, embedding):
        raise CheckpointError(
            "the decoder differs from the word embeddings; GAU-alpha has one matrix for both, so these are not the "
            "weights of such a model"
        )
    return {name: tensor for name, tensor in tensors.items() if name != DECODER}


def _drop_gains(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without the gains of norms, which some releases of bert4torch save, all of them 1."""
    gains = {name: tensor for name, tensor in tensors.items() if name.endswith(f".{GAIN}")}
    for name, tensor in gains.items():
        if not torch.equal(tensor, torch.ones_like(tensor)):
            raise CheckpointError(
                f"{name.removesuffix(GAIN)}weight is not 1 everywhere; the norms of GAU-alpha learn nothing, so these "
                "are not the weights of such a model"
            )
    return {name: tensor for name, tensor in tensors.items() if name not in gains}


def _read_sizes(tensors: Tensors) -> dict[str, Any]:
    """Return the config fields that shapes and names tell."""

    def get_shape(name: str) -> tuple[int, int]:
        if name not in tensors or tensors[name].ndim != len("dw"):
            found = list_names(sorted(tensors)) or "nothing"
            raise CheckpointError(
                f"no matrix for {name!r} in the checkpoint (found {found}); give the state dict of a GAU-alpha, as "
                "gau-alpha or bert4torch saves it"
            )
        rows, columns = tensors[name].shape
        return rows, columns

    vocab_size, dim = get_shape("token_emb.weight")
    return {
        "vocab_size": vocab_size,
        "dim": dim,
        "depth": 1 + max((int(match[1]) for name in tensors if (match := LAYER_KEY.match(name))), default=-1),
        "hidden_dim": get_shape("layers.0.o_dense.weight")[1],
        "qk_dim": get_shape("layers.0.gamma")[1],
        "num_token_types": get_shape("token_type_emb.weight")[0],
    }


def _check_arguments(arguments: Mapping[str, Any], sizes: Mapping[str, Any]) -> None:
    """Compare arguments with the weights, and with what all models have in common."""
    for name, value in arguments.items():
        if name in SIZE_ARGUMENTS:
            told = sizes[SIZE_ARGUMENTS[name]]
            if value != told:
                raise ConfigError(f"{name}={value!r}, but the weights say {told!r}; correct it or leave it out")
        elif name in FIXED:
            if value not in FIXED[name]:
                raise ConfigError(
                    f"{name}={value!r} is not supported; only models of {name} {' or '.join(map(str, FIXED[name]))} are"
                )
        elif name not in IGNORED and name not in OWN_FIELDS:
            accepted = list_known(name, (*SIZE_ARGUMENTS, *FIXED))
            raise ConfigError(f"unknown argument {name!r}; GAU-alpha's are {accepted}; and ours is {OWN_FIELDS[0]}")


GAU_ALPHA = Family(GauAlphaConfig, GauAlphaModel, "gau-alpha", import_gau_alpha, {}, ANCHORS)
