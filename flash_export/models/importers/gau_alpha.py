"""Checkpoints of GAU-alpha, as the libraries gau-alpha and bert4torch name their tensors.

Sizes follow from the shapes. What weights cannot tell has one value in every published model. It is asked for all the
same, as the ``config.json`` that lies beside the weights, because the layer has other values too.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from flash_export.errors import CheckpointError
from flash_export.models.family import Family
from flash_export.models.gau_alpha import NORM_EPS, GauAlphaConfig, GauAlphaModel
from flash_export.models.importers.arguments import ImportedModel
from flash_export.models.importers.transformers_style import (
    ArgumentRules,
    count_layers,
    get_shape,
    rename_tensors,
    take_tied,
)

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
# What weights cannot tell, with the library's defaults; and what all models have in common.
RULES = ArgumentRules(
    "GAU-alpha",
    asked={"hidden_act": "swish", "normalization": "softmax_plus", "attention_scale": True},
    fixed={
        "hidden_act": ("swish", "silu"),
        "normalization": ("softmax_plus",),
        "attention_scale": (True,),
        "use_bias": (False,),
        "layer_norm_eps": (NORM_EPS,),
        "tie_word_embeddings": (True,),
        "num_attention_heads": (1,),
    },
    own_fields=("mask_dialect",),
)
BERT4TORCH_RULES = replace(RULES, asked={"hidden_act": "swish"})  # it has no arguments for the rest
SIZE_ARGUMENTS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "embedding_size": "dim",
    "num_hidden_layers": "depth",
    "intermediate_size": "hidden_dim",
    "attention_key_size": "qk_dim",
    "type_vocab_size": "num_token_types",
}


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
    is_bert4torch = any(BERT4TORCH_KEY.match(name) for name in tensors)
    own = _join_heads(rename_tensors(tensors, BERT4TORCH_NAMES if is_bert4torch else GAU_ALPHA_NAMES))
    take_tied(own, DECODER, "token_emb.weight", RULES.library)
    own = _drop_gains(own)
    sizes = _read_sizes(own)
    told = {argument: sizes[field] for argument, field in SIZE_ARGUMENTS.items()}
    assumed = (BERT4TORCH_RULES if is_bert4torch else RULES).check(arguments, told)
    own_fields = {name: value for name, value in arguments.values.items() if name in RULES.own_fields}
    return ImportedModel(GauAlphaConfig(**sizes, **own_fields), own, assumed, "bert4torch" if is_bert4torch else None)


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
    source = "give the state dict of a GAU-alpha, as gau-alpha or bert4torch saves it"
    vocab_size, dim = get_shape(tensors, "token_emb.weight", "vd", source)
    return {
        "vocab_size": vocab_size,
        "dim": dim,
        "depth": count_layers(tensors),
        "hidden_dim": get_shape(tensors, "layers.0.o_dense.weight", "de", source)[1],
        "qk_dim": get_shape(tensors, "layers.0.gamma", "hs", source)[1],
        "num_token_types": get_shape(tensors, "token_type_emb.weight", "td", source)[0],
    }


GAU_ALPHA = Family(GauAlphaConfig, GauAlphaModel, "gau-alpha", import_gau_alpha, {}, ANCHORS)
