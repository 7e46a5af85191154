"""What a user would pick instead of FLASH: a pre-norm Transformer with as many parameters.

Its attention is exported as the one operator ``ai.onnx::Attention``, which opset 23 brought.

Axes: b batch, n sequence, d model, h head, k width of a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import torch
from peers import build_original
from torch import nn
from torch.nn import functional as F

from flash_export.exporters.tracing import quiet_exporter
from flash_export.layers.position import ScaledSinusoid

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Float, Int
    from peers import PeerConfig
    from torch import Tensor

HEADS = 8
OPSET = 23
# The paper counts two gated attention units for one Transformer layer, attention and MLP.
FLASH_LAYERS_A_LAYER = 2


class TransformerLayer(nn.Module):
    """Attention, then an MLP, each behind a LayerNorm and beside a residual."""

    def __init__(self, dim: int, mlp_dim: int, *, causal: bool) -> None:
        """Create the layer with random weights."""
        super().__init__()
        self.causal = causal
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_qkv, self.to_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.ReLU(), nn.Linear(mlp_dim, dim))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Mix the tokens, then the channels."""
        qkv = self.to_qkv(self.attention_norm(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in qkv)  # (b, h, n, k)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.to_out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """The embedding and head of the FLASH model around Transformer layers."""

    def __init__(self, config: PeerConfig, depth: int, mlp_dim: int) -> None:
        """Create the model with random weights."""
        super().__init__()
        self.token_emb = nn.Embedding(config.num_tokens, config.dim)
        self.abs_pos_emb = ScaledSinusoid(config.dim)
        self.layers = nn.ModuleList(TransformerLayer(config.dim, mlp_dim, causal=config.causal) for _ in range(depth))
        self.to_logits = nn.Sequential(nn.LayerNorm(config.dim), nn.Linear(config.dim, config.num_tokens))

    def forward(self, input_ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n vocab"]:
        """Return the logits of every position."""
        x = self.token_emb(input_ids) + self.abs_pos_emb(torch.arange(input_ids.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.to_logits(x)


def build_transformer(config: PeerConfig) -> Transformer:
    """Build a Transformer with the FLASH model's parameters, to within one row of the MLPs."""
    torch.manual_seed(0)
    depth = -(-config.depth // FLASH_LAYERS_A_LAYER)
    budget = count_parameters(build_original(config))
    narrowest = count_parameters(Transformer(config, depth, 1))
    mlp_dim = 1 + round((budget - narrowest) / (depth * (2 * config.dim + 1)))
    return Transformer(config, depth, mlp_dim).requires_grad_(requires_grad=False).eval()


def count_parameters(model: nn.Module) -> int:
    """Return the number of trained values, those that are shared counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def export_transformer(model: Transformer, path: Path) -> Path:
    """Export with symbolic length; refuse if the attention did not become one operator a layer."""
    tokens = torch.ones(1, 40, dtype=torch.int64)
    with quiet_exporter():
        torch.onnx.export(
            model,
            (tokens,),
            str(path),
            dynamo=True,
            opset_version=OPSET,
            input_names=["input_ids"],
            output_names=["logits"],
            dynamic_shapes=({1: torch.export.Dim("seq", min=2)},),
            external_data=False,
            verbose=False,
        )
    check_attention(path, len(model.layers))
    return path


def check_attention(path: Path, num_layers: int) -> None:
    """Check that the attention of each layer became one operator.

    Raises:
        RuntimeError: It did not, so that onnxruntime's own attention would not be what is measured.
    """
    operators = [node.op_type for node in onnx.load(path).graph.node]
    if operators.count("Attention") != num_layers:
        raise RuntimeError(f"got {operators.count('Attention')} Attention nodes for {num_layers} layers")
