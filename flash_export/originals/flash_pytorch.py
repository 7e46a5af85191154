"""flash-pytorch's own modules: ``FLASHTransformer``, or its ``GAU`` layers in a stack."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flash_export.originals.installed import Original, load_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

DISTRIBUTION = "flash-pytorch"
_SIZES = {
    "vocab_size": "num_tokens",
    "qk_dim": "query_key_dim",
    "dim": "dim",
    "depth": "depth",
    "norm_type": "norm_type",
}
_OF_STACK = ("num_tokens", "depth", "norm_type")


class GauStack(nn.Module):
    """GAU layers between the embedding and the head of ``FLASHTransformer``, which the library has no model for."""

    def __init__(
        self,
        library: Any,
        *,
        num_tokens: int,
        dim: int,
        depth: int = 2,
        norm_type: str = "scalenorm",
        **arguments: Any,
    ) -> None:
        """Create the model with a release of the library."""
        super().__init__()
        norm_class = library.ScaleNorm if norm_type == "scalenorm" else nn.LayerNorm
        self.token_emb = nn.Embedding(num_tokens, dim)
        self.abs_pos_emb = library.ScaledSinuEmbedding(dim)
        self.layers = nn.ModuleList(library.GAU(dim=dim, norm_klass=norm_class, **arguments) for _ in range(depth))
        self.to_logits = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_tokens))

    def forward(self, input_ids: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Return the logits."""
        x = self.token_emb(input_ids)
        x = self.abs_pos_emb(x) + x
        for layer in self.layers:
            x = layer(x, mask=mask)
        return self.to_logits(x)


def build(config: Mapping[str, Any], arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Original:
    """Build the library's model as the installed release does.

    Args:
        config: ``config.json`` of a bundle of family ``flash`` or ``gau``, for sizes alone.
        arguments: What the user told; for all else the library's own defaults hold.
        tensors: The state dict, by the library's names.

    Raises:
        ValueError: The weights do not fit.
    """
    library = importlib.import_module("flash_pytorch.flash_pytorch")
    is_flash = config["model_type"] == "flash"
    layer = library.FLASHTransformer if is_flash else library.GAU
    accepted = {*inspect.signature(layer).parameters, *(() if is_flash else _OF_STACK)}
    told = {theirs: config[ours] for ours, theirs in _SIZES.items()}
    told["expansion_factor"] = (config["hidden_dim"] + 0.5) / config["dim"]  # the library rounds down
    told |= {name: value for name, value in arguments.items() if name not in told}
    told = {name: value for name, value in told.items() if name in accepted}
    module = layer(**told) if is_flash else GauStack(library, **told)
    load_weights(module, _keep_frequencies(module, tensors), DISTRIBUTION)

    def call(inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        mask = inputs.get("attention_mask")
        return (module(inputs["input_ids"], mask=None if mask is None else mask.bool()),)

    return Original(module, call)


def _keep_frequencies(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the module's own frequencies where a file in half precision has them rounded."""
    kept = dict(tensors)
    for name, own in module.state_dict().items():
        if name.endswith(("freqs", "inv_freq")) and name in kept:
            rounded = [own.to(dtype).float() for dtype in (torch.float16, torch.bfloat16)]
            if any(torch.equal(kept[name].float(), values) for values in rounded):
                kept[name] = own
    return kept
