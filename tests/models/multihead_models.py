"""Small multi-head models with weights by which every part matters, and batches for them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from flash_export.models.bigbird import BigBirdConfig
from flash_export.models.linformer import LinformerConfig
from flash_export.models.longformer import LongformerConfig
from flash_export.models.mc_tfm import McTfmConfig
from flash_export.models.multihead import MultiheadConfig, MultiheadModel
from flash_export.models.performer import PerformerConfig
from flash_export.models.registry import get_family
from flash_export.models.transformer import TransformerConfig

if TYPE_CHECKING:
    from torch import Tensor

VOCAB_SIZE = 29
SIZES: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "dim": 24, "depth": 2, "num_heads": 3, "ff_dim": 20}
PLUS: dict[str, Any] = {"ff_type": "swiglu", "norm_type": "scalenorm", "positions": "rotary"}
# A config for each attention: what differs between them beside it is spread over all.
CONFIGS: dict[str, MultiheadConfig] = {
    "transformer": TransformerConfig(**SIZES, positions="learnt", max_positions=80),
    "transformer++": TransformerConfig(**SIZES, **PLUS, causal=True),
    "mc_tfm": McTfmConfig(**SIZES, **{**PLUS, "ff_type": "geglu"}, chunk_size=8),
    "causal mc_tfm": McTfmConfig(**SIZES, **PLUS, chunk_size=8, causal=True),
    "performer": PerformerConfig(**SIZES, num_features=12),
    "causal performer": PerformerConfig(**SIZES, num_features=12, positions="rotary", causal=True),
    "linformer": LinformerConfig(**SIZES, num_projected=5, positions="learnt", max_positions=80),
    "linformer, shared": LinformerConfig(**SIZES, **PLUS, num_projected=5, shares_kv=True, max_positions=80),
    "longformer": LongformerConfig(**SIZES, reach=4),
    "causal longformer": LongformerConfig(**SIZES, **PLUS, reach=4, causal=True),
    "bigbird": BigBirdConfig(**SIZES, block_size=4, max_positions=80),
    "causal bigbird": BigBirdConfig(**SIZES, **PLUS, block_size=4, max_positions=80, causal=True),
}


def make_model(config: MultiheadConfig, seed: int = 0) -> MultiheadModel:
    """Build a model whose tokens attend to some others and not to all alike."""
    torch.manual_seed(seed)
    model = get_family(config.model_type).model_class(config)
    assert isinstance(model, MultiheadModel)
    model.requires_grad_(requires_grad=False).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "to_logits.0.weight", "norm.g", "gamma", "scale")):
            parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
        elif name.endswith(("bias", "beta")):
            parameter.copy_(0.3 * torch.randn_like(parameter))
        elif "emb" in name:
            parameter.copy_(torch.randn_like(parameter))
        elif "proj_" in name:
            parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
        else:
            parameter.copy_(1.5 * torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return model


def change_config(name: str, size: int, **parts: Any) -> MultiheadConfig:
    """Return one of the configs with chunks, windows or blocks of another size, and other parts."""
    sizes: dict[str, Any] = {
        field: size for field in ("chunk_size", "reach", "block_size") if hasattr(CONFIGS[name], field)
    }
    return replace(CONFIGS[name], max_positions=40, **sizes, **parts)


def make_batch(lengths: list[int], seed: int = 1) -> tuple[Tensor, Tensor]:
    """Return token ids, those of padding random too, and the mask."""
    torch.manual_seed(seed)
    input_ids = torch.randint(0, VOCAB_SIZE, (len(lengths), max(lengths)))
    return input_ids, (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def read_quantities(model: MultiheadModel, *inputs: Tensor) -> dict[str, Tensor]:
    """Return what is computed inside a model, by name."""
    readings: dict[str, Tensor] = {}
    with model.read_probes(readings.__setitem__):
        model(*inputs)
    return readings


def compute_error(expected: Tensor, actual: Tensor) -> float:
    """Return the largest error as a fraction of the scale; NaN if there is one."""
    return float((expected - actual).abs().max() / expected.abs().max().clamp(min=1e-30))
