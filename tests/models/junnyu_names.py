"""State dicts as JunnYu's FLASHQuad_pytorch saves them; the repository is on no registry and not run here."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.flash_quad import FlashQuadConfig, FlashQuadModel, compute_sinusoid

if TYPE_CHECKING:
    from torch import Tensor, nn

FLASH = FlashConfig(17, 8, 2, 12, chunk_size=4, qk_dim=6, shift_tokens=False, mask_divisor="padded")
QUAD = FlashQuadConfig(vocab_size=17, dim=8, depth=2, hidden_dim=12, qk_dim=6, max_positions=16)


def make_flash_quad(config: FlashQuadConfig, seed: int = 0) -> FlashQuadModel:
    """Make a model in which each part matters: attention, its bias, positions, gains."""
    torch.manual_seed(seed)
    model = FlashQuadModel(config).requires_grad_(requires_grad=False).eval()
    for name, parameter in model.named_parameters():
        is_product = name.endswith(("uv.weight", "o.weight", "transform.weight"))
        parameter.copy_(torch.randn_like(parameter) / (parameter.shape[-1] ** 0.5 if is_product else 1))
    return model


def name_flash_quad(model: FlashQuadModel) -> dict[str, Tensor]:
    """Return all that ``FLASHQuadForMaskedLM.state_dict()`` has: buffers, what is not used, and what is tied."""
    config, ours = model.config, model.state_dict()
    embeddings, head = "flash_quad.embeddings", "cls.predictions"
    named = {
        f"{embeddings}.scaledsin_scalar": ours["position_scale"],
        f"{embeddings}.position_ids": torch.arange(config.max_positions)[None],
        f"{embeddings}.scaledsin_embeddings": compute_sinusoid(config.max_positions, config.dim),
        f"{embeddings}.word_embeddings.weight": ours["token_emb.weight"],
        f"{embeddings}.token_type_embeddings.weight": ours["token_type_emb.weight"],
        **_name_norm(ours, "embedding_norm", embeddings),
    }
    for index in range(config.depth):
        layer = f"flash_quad.encoder.layer.{index}"
        names = {"weight": "gamma", "bias": "beta"}
        for name in ("weight", "bias", "w", "uv.weight", "uv.bias", "o.weight", "o.bias"):
            named[f"{layer}.{name}"] = ours[f"layers.{index}.{names.get(name, name)}"]
        named |= {f"{layer}.{name}": torch.randn(1, config.qk_dim) for name in ("a", "b")}
        named |= _name_norm(ours, f"layers.{index}.norm", layer)
    return {
        **named,
        f"{head}.bias": ours["logit_bias"],
        f"{head}.transform.dense.weight": ours["transform.weight"],
        f"{head}.transform.dense.bias": ours["transform.bias"],
        **_name_norm(ours, "transform_norm", f"{head}.transform"),
        f"{head}.decoder.weight": ours["token_emb.weight"],
        f"{head}.decoder.bias": ours["logit_bias"],
    }


def make_flash(config: FlashConfig, seed: int = 0) -> FlashModel:
    """Make a model of family ``flash`` whose decoder is its embedding."""
    torch.manual_seed(seed)
    model = FlashModel(config).requires_grad_(requires_grad=False).eval()
    for parameter in model.parameters():
        parameter.copy_(torch.randn_like(parameter))
    cast("nn.Linear", model.to_logits[1]).weight[:] = model.token_emb.weight
    return model


def name_flash(model: FlashModel) -> dict[str, Tensor]:
    """Return all that ``FLASHForMaskedLM.state_dict()`` has: a rotary table for each layer, and what is tied."""
    ours, head = model.state_dict(), "cls.predictions"
    named = {
        "flash.embeddings.scale": ours["abs_pos_emb.scale"],
        "flash.embeddings.word_embeddings.weight": ours["token_emb.weight"],
        f"{head}.LayerNorm.weight": ours["to_logits.0.weight"],
        f"{head}.LayerNorm.bias": ours["to_logits.0.bias"],
        f"{head}.decoder.weight": ours["token_emb.weight"],
        f"{head}.decoder.bias": ours["to_logits.1.bias"],
    }
    for index in range(model.config.depth):
        layer = f"flash.encoder.layers.{index}"
        named[f"{layer}.rotary_pos_emb.freqs"] = ours["rotary_pos_emb.freqs"]
        named[f"{layer}.qk_offset_scale.weight"] = ours[f"layers.{index}.qk_offset_scale.gamma"]
        named[f"{layer}.qk_offset_scale.bias"] = ours[f"layers.{index}.qk_offset_scale.beta"]
        for name in ("norm.g", "norm.weight", "norm.bias"):
            if f"layers.{index}.{name}" in ours:
                named[f"{layer}.{name}"] = ours[f"layers.{index}.{name}"]
        for name in ("to_hidden.0", "to_qk.0", "to_out"):
            named |= {f"{layer}.{name}.{kind}": ours[f"layers.{index}.{name}.{kind}"] for kind in ("weight", "bias")}
        bias = "rel_pos_bias.relative_attention_bias.weight"
        named[f"{layer}.{bias}"] = ours[f"layers.{index}.{bias}"]
    return named


def _name_norm(ours: dict[str, Tensor], norm: str, module: str) -> dict[str, Tensor]:
    names = {"g": "scala", "weight": "weight", "bias": "bias"}
    return {
        f"{module}.LayerNorm.{theirs}": ours[f"{norm}.{name}"]
        for name, theirs in names.items()
        if f"{norm}.{name}" in ours
    }
