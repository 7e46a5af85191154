"""flash-pytorch's GAU layers as a model, which that library itself does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor


class GauStack(nn.Module):
    """GAU layers of a release between the embedding and the head of its FLASHTransformer."""

    def __init__(
        self,
        library: ModuleType,
        vocab_size: int,
        *,
        dim: int,
        depth: int = 2,
        norm_type: str = "scalenorm",
        **arguments: Any,
    ) -> None:
        super().__init__()
        norm_class = library.ScaleNorm if norm_type == "scalenorm" else nn.LayerNorm
        self.token_emb = nn.Embedding(vocab_size, dim)
        self.abs_pos_emb = library.ScaledSinuEmbedding(dim)
        layers = (library.GAU(dim=dim, norm_klass=norm_class, **arguments) for _ in range(depth))
        self.layers = nn.ModuleList(layers)
        self.to_logits = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, vocab_size))

    def forward(self, input_ids: Tensor, *, mask: Tensor | None = None) -> Tensor:
        x = self.token_emb(input_ids)
        x = self.abs_pos_emb(x) + x
        for layer in self.layers:
            x = layer(x, mask=mask)
        logits: Tensor = self.to_logits(x)
        return logits
