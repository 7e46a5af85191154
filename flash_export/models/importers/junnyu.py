"""Checkpoints of JunnYu's FLASHQuad_pytorch: the masked language models of FLASH-Quad and of FLASH.

Sizes follow from the shapes. What weights cannot tell is asked for, as the ``config.json`` that lies beside them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from flash_export.errors import CheckpointError
from flash_export.models.family import Family
from flash_export.models.flash import FlashConfig
from flash_export.models.flash_quad import (
    NORM_EPS,
    FlashQuadConfig,
    FlashQuadModel,
    compute_frequencies,
    compute_sinusoid,
)
from flash_export.models.importers.arguments import ImportedModel, check_expansion, check_number
from flash_export.models.importers.rotary_tables import merge_rotary_tables
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

LIBRARY = "FLASHQuad_pytorch"
EMBEDDING, DECODER, DECODER_BIAS = "token_emb.weight", "decoder.weight", "decoder.bias"
POSITIONS, SINUSOID = "position_ids", "sinusoid"
FLASH_QUAD_NORMS = {
    r"flash_quad\.embeddings": "embedding_norm",
    r"flash_quad\.encoder\.layer\.(\d{1,9})": r"layers.\1.norm",
    r"cls\.predictions\.transform": "transform_norm",
}
# Our names by those of the library.
FLASH_QUAD_NAMES = {
    r"flash_quad\.embeddings\.word_embeddings\.weight": EMBEDDING,
    r"flash_quad\.embeddings\.token_type_embeddings\.weight": "token_type_emb.weight",
    r"flash_quad\.embeddings\.scaledsin_scalar": "position_scale",
    r"flash_quad\.embeddings\.scaledsin_embeddings": SINUSOID,
    r"flash_quad\.embeddings\.position_ids": POSITIONS,
    r"flash_quad\.encoder\.layer\.(\d{1,9})\.weight": r"layers.\1.gamma",
    r"flash_quad\.encoder\.layer\.(\d{1,9})\.bias": r"layers.\1.beta",
    r"flash_quad\.encoder\.layer\.(\d{1,9})\.(w|a|b|(?:uv|o)\.(?:weight|bias))": r"layers.\1.\2",
    r"cls\.predictions\.transform\.dense\.(weight|bias)": r"transform.\1",
    r"cls\.predictions\.bias": "logit_bias",
    r"cls\.predictions\.decoder\.weight": DECODER,
    r"cls\.predictions\.decoder\.bias": DECODER_BIAS,
    **{
        rf"{module}\.LayerNorm\.{theirs}": f"{norm}.{ours}"
        for module, norm in FLASH_QUAD_NORMS.items()
        for theirs, ours in (("scala", "g"), ("weight", "weight"), ("bias", "bias"))
    },
}
# The library makes the bias of models of more than 512 positions of them, and then fails.
UNUSED_KEY = re.compile(r"layers\.\d+\.[ab]")
MIN_POSITIONS, MAX_POSITIONS = 2, 512  # that the library can run
MAX_SINUSOID_ERROR = 5e-3  # of one that was rounded to bfloat16
FLASH_QUAD_RULES = ArgumentRules(
    "FLASHQuad",
    asked={"hidden_act": "silu", "layer_norm_eps": NORM_EPS},
    fixed={"hidden_act": ("silu", "swish"), "tie_word_embeddings": (True,), "model_type": ("flash_quad",)},
    checked=("expansion_factor",),
)
FLASH_QUAD_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "depth",
    "s": "qk_dim",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "num_token_types",
}
FLASH_QUAD_NORM_TYPES = {"scalenorm": "scale_norm", "layernorm": "layer_norm"}

# FLASH has the names of flash-pytorch, from which it was copied, but for these.
JUNNYU_ANCHOR = "flash.embeddings.word_embeddings.weight"
FLASH_NAMES = {
    r"flash\.embeddings\.word_embeddings\.weight": EMBEDDING,
    r"flash\.embeddings\.scale": "abs_pos_emb.scale",
    r"flash\.encoder\.(layers\.\d{1,9}\.qk_offset_scale)\.weight": r"\1.gamma",
    r"flash\.encoder\.(layers\.\d{1,9}\.qk_offset_scale)\.bias": r"\1.beta",
    r"flash\.encoder\.(layers\.\d{1,9}\..+)": r"\1",
    r"cls\.predictions\.LayerNorm\.(weight|bias)": r"to_logits.0.\1",
    r"cls\.predictions\.decoder\.weight": DECODER,
    r"cls\.predictions\.decoder\.bias": "to_logits.1.bias",
}
FLASH_RULES = ArgumentRules(
    "FLASH",
    asked={"group_size": 256, "layer_norm_eps": NORM_EPS},
    fixed={"layer_norm_eps": (NORM_EPS,), "tie_word_embeddings": (True,), "model_type": ("flash",)},
    own_fields=("mask_divisor",),
    checked=("expansion_factor",),
)
FLASH_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "depth",
    "query_key_dim": "qk_dim",
    "norm_type": "norm_type",
}


def import_flash_quad(tensors: Tensors, arguments: GivenArguments) -> ImportedModel:
    """Translate the state dict of a ``FLASHQuadForMaskedLM``: the decoder is tied to the embedding.

    Args:
        tensors: The state dict.
        arguments: The model's ``config.json``.

    Raises:
        ConfigError: An argument is missing, unknown, of another kind of model, or contradicts the weights; or a release
            is named.
        CheckpointError: The tensors that tell the sizes are missing; the decoder is not the embedding; or positions are
            more than the library can run, or not those of its formula.
    """
    own = rename_tensors(tensors, FLASH_QUAD_NAMES)
    take_tied(own, DECODER, EMBEDDING, FLASH_QUAD_RULES.library)
    _join_biases(own)
    sizes = _read_flash_quad_sizes(own)
    told = {argument: sizes[field] for argument, field in FLASH_QUAD_SIZES.items()}
    assumed = FLASH_QUAD_RULES.check(arguments, {**told, "norm_type": FLASH_QUAD_NORM_TYPES[sizes["norm_type"]]})
    given = {**assumed, **arguments.values}
    if "expansion_factor" in given:
        check_expansion("expansion_factor", given["expansion_factor"], sizes["dim"], sizes["hidden_dim"])
    config = FlashQuadConfig(**sizes, norm_eps=check_number("layer_norm_eps", given["layer_norm_eps"]))
    _take_positions(own, config)
    used = {name: tensor for name, tensor in own.items() if not UNUSED_KEY.fullmatch(name)}
    return ImportedModel(config, used, assumed)


def _join_biases(tensors: dict[str, Tensor]) -> None:
    """Remove one of the two names of the decoder's bias.

    Raises:
        CheckpointError: There are two biases.
    """
    bias = tensors.pop(DECODER_BIAS, None)
    if bias is not None and not torch.equal(tensors.setdefault("logit_bias", bias), bias):
        raise CheckpointError(
            "cls.predictions.bias differs from cls.predictions.decoder.bias; FLASHQuad has one bias for both, and "
            "weights do not tell which of them it is; save them again from the model"
        )


def _read_flash_quad_sizes(tensors: Tensors) -> dict[str, Any]:
    """Return the config fields that shapes and names tell.

    Raises:
        CheckpointError: A tensor that tells sizes is missing, or there are more positions than the library can run.
    """
    source = "give the state dict of a FLASHQuadForMaskedLM"
    vocab_size, dim = get_shape(tensors, EMBEDDING, "vd", source)
    max_positions = (get_shape(tensors, "layers.0.w", "p", source)[0] + 1) // 2
    if not MIN_POSITIONS <= max_positions <= MAX_POSITIONS:
        raise CheckpointError(
            f"the weights have {max_positions} positions; the library itself fails on others than {MIN_POSITIONS} to "
            f"{MAX_POSITIONS}, so that there is nothing to be the same as; give a model that it can run"
        )
    return {
        "vocab_size": vocab_size,
        "dim": dim,
        "depth": count_layers(tensors),
        "hidden_dim": get_shape(tensors, "layers.0.o.weight", "de", source)[1],
        "qk_dim": get_shape(tensors, "layers.0.gamma", "hs", source)[1],
        "max_positions": max_positions,
        "num_token_types": get_shape(tensors, "token_type_emb.weight", "td", source)[0],
        "norm_type": "scalenorm" if "layers.0.norm.g" in tensors else "layernorm",
    }


def _take_positions(tensors: dict[str, Tensor], config: FlashQuadConfig) -> None:
    """Remove the buffers of positions, which follow from formulas, after comparing them with these.

    Raises:
        CheckpointError: They differ.
    """
    positions, sinusoid = tensors.pop(POSITIONS, None), tensors.pop(SINUSOID, None)
    if positions is not None and not torch.equal(positions, torch.arange(config.max_positions)[None]):
        raise CheckpointError(
            f"flash_quad.embeddings.position_ids are not 0 to {config.max_positions - 1}; only models that count "
            "their positions are supported"
        )
    if sinusoid is not None:
        formula = compute_sinusoid(config.max_positions, config.dim)
        if sinusoid.shape != formula.shape or not (sinusoid.float() - formula).abs().max() <= MAX_SINUSOID_ERROR:
            raise CheckpointError(
                "flash_quad.embeddings.scaledsin_embeddings are not the sines and cosines that FLASHQuad computes; "
                "these are not the weights of such a model"
            )


def import_junnyu_flash(tensors: Tensors, arguments: GivenArguments) -> ImportedModel:
    """Translate the state dict of a ``FLASHForMaskedLM`` to family ``flash``: not causal, and without a token shift.

    Args:
        tensors: The state dict. The decoder is tied to the embedding, of which family ``flash`` has a copy.
        arguments: The model's ``config.json``, and ``mask_divisor``, which is ``padded`` as in the library if it is not
            given: its authors pad every text to 512 tokens, and so divide by that.

    Raises:
        ConfigError: An argument is missing, unknown, of another kind of model, or contradicts the weights; or a release
            is named.
        CheckpointError: The tensors that tell the sizes are missing; the decoder is not the embedding; or layers have
            different rotary tables.
    """
    own = rename_tensors(tensors, FLASH_NAMES)
    take_tied(own, DECODER, EMBEDDING, FLASH_RULES.library)
    source = "give the state dict of a FLASHForMaskedLM"
    vocab_size, dim = get_shape(own, EMBEDDING, "vd", source)
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "dim": dim,
        "depth": count_layers(own),
        "hidden_dim": get_shape(own, "layers.0.to_out.weight", "de", source)[1],
        "qk_dim": get_shape(own, "layers.0.to_qk.0.weight", "sd", source)[0],
        "norm_type": "scalenorm" if "layers.0.norm.g" in own else "layernorm",
    }
    assumed = FLASH_RULES.check(arguments, {argument: sizes[field] for argument, field in FLASH_SIZES.items()})
    given = {**assumed, **arguments.values}
    if "expansion_factor" in given:
        check_expansion("expansion_factor", given["expansion_factor"], dim, sizes["hidden_dim"])
    config = FlashConfig(
        **sizes,
        chunk_size=given["group_size"],
        shift_tokens=False,
        mask_divisor=given.get("mask_divisor", "padded"),
    )
    own["to_logits.1.weight"] = own[EMBEDDING]
    own["abs_pos_emb.inv_freq"] = compute_frequencies(dim)
    return ImportedModel(config, merge_rotary_tables(own, FLASH_RULES.library), assumed, LIBRARY)


# With the head beside the encoder; ours.
ANCHORS = ("flash_quad.embeddings.word_embeddings.weight", EMBEDDING)
FLASH_QUAD = Family(
    FlashQuadConfig,
    FlashQuadModel,
    LIBRARY,
    import_flash_quad,
    {"layer_norm_eps": "norm_eps"},
    ANCHORS,
    frozenset({"flash_quad.embeddings.position_ids"}),
)
