"""Family ``gau``: a stack of gated attention units (FLASH-Quad), in the dialect of flash-pytorch 0.1.9.

flash-pytorch ships the layer (``GAU``) without a model around it; token embedding, scaled sinusoid and head are
those of its ``FLASHTransformer``. The attention is quadratic in the length.

Axes: b batch, n sequence, i query, j key, d model width, s query/key width, e hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from flash_export.errors import ConfigError
from flash_export.layers.activation import ATTENTION_FUNCTIONS
from flash_export.layers.attention import OffsetScale, build_causal_mask
from flash_export.layers.norm import build_norm
from flash_export.layers.position import RelativePositionBias, ScaledSinusoid
from flash_export.layers.tap import Tap
from flash_export.models.base import ModelConfig, ReferenceModel, compute_valid_tokens
from flash_export.models.token_model import describe_token_model
from flash_export.probes import Quantity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from flash_export.interface import Interface

QUANTITIES = {
    "embedding": Quantity("token and position embedding", place="before", is_normed=True),
    "normed": Quantity("input after the norm"),
    "value": Quantity("values", is_zero_in_padding=True),
    "gate": Quantity("gates"),
    "q": Quantity("queries"),
    "k": Quantity("keys"),
    "weights": Quantity("quadratic attention weights", "pairs"),
    "mixed": Quantity("attended values"),
    "out": Quantity("output of the block", is_normed=True),
}


@dataclass(frozen=True)
class GauConfig(ModelConfig):
    """Hyper-parameters of a FLASH-Quad model.

    Attributes:
        vocab_size: Number of tokens.
        dim: Model width d (even).
        depth: Number of gated attention units.
        hidden_dim: Width e of values and gates; twice ``dim`` in the paper.
        qk_dim: Width s of the shared queries and keys.
        causal: Whether a token sees only itself and earlier ones.
        norm_type: ``layernorm`` (flash-pytorch's default for the layer) or ``scalenorm``.
        attention_fn: ``relu2``, ``laplace``, or ``laplace_wide``, which is flash-pytorch 0.1.6's Laplace.
        mask_divisor: Scores are divided by the number of ``valid`` tokens of a row, or by the ``padded`` length of
            the batch as flash-pytorch does. They agree where nothing is masked.
    """

    model_type: ClassVar[str] = "gau"
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "norm_type": ("scalenorm", "layernorm"),
        "attention_fn": tuple(ATTENTION_FUNCTIONS),
        "mask_divisor": ("valid", "padded"),
    }

    vocab_size: int
    dim: int
    depth: int
    hidden_dim: int
    qk_dim: int = 128
    causal: bool = False
    norm_type: str = "layernorm"
    attention_fn: str = "relu2"
    mask_divisor: str = "valid"

    def __post_init__(self) -> None:
        """Check the fields and that the sinusoid has a whole number of frequencies."""
        super().__post_init__()
        if self.dim % 2:
            raise ConfigError(f"dim={self.dim} is odd; the sinusoidal position embedding needs an even width")

    @property
    def interface(self) -> Interface:
        """Tokens to logits; scores are divided by the number of tokens, in causal models too."""
        return describe_token_model(
            self.vocab_size,
            padding="exact" if self.mask_divisor == "valid" else "counted",
            needs_mask=True,
            is_causal=self.causal,
        )

    @property
    def num_blocks(self) -> int:
        """Number of gated attention units."""
        return self.depth

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """What is computed on the way."""
        return QUANTITIES

    @property
    def state_refusal(self) -> str | None:
        """Scores are divided by the sequence length."""
        return "FLASH-Quad divides its scores by the sequence length, so that every new token changes the whole past"

    def count_macs(self, seq_len: int) -> int:
        """Count the attention over the whole length and the projections."""
        projections = 3 * self.dim * self.hidden_dim + self.dim * self.qk_dim
        attention = seq_len * (self.qk_dim + self.hidden_dim)
        return seq_len * (self.depth * (projections + attention) + self.dim * self.vocab_size)

    def estimate_bytes(self, batch: int, seq_len: int) -> int:
        """Count what is alive at the widest point of a layer, and the logits of three models.

        The relative bias holds several tables of int64 that are quadratic in the length.
        """
        per_token = 32 * (self.dim + self.hidden_dim + self.qk_dim) + 16 * self.vocab_size
        return batch * seq_len * per_token + seq_len**2 * (12 * batch + 40)


class GauLayer(nn.Module):
    """One pre-norm gated attention unit with its residual."""

    def __init__(self, config: GauConfig) -> None:
        """Create the layer of a model with this config."""
        super().__init__()
        self.config = config
        self.norm = build_norm(config.norm_type, config.dim)
        self.rel_pos_bias = RelativePositionBias(config.dim**0.5, config.causal)
        self.to_hidden = nn.Sequential(nn.Linear(config.dim, 2 * config.hidden_dim), nn.SiLU())
        self.to_qk = nn.Sequential(nn.Linear(config.dim, config.qk_dim), nn.SiLU())
        self.offsetscale = OffsetScale(config.qk_dim, heads=2)
        self.to_out = nn.Sequential(nn.Linear(config.hidden_dim, config.dim))
        self.tap = Tap()

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        *,
        visible: Bool[Tensor, "b _ n"],
        length: Int[Tensor, "b 1"],
    ) -> Float[Tensor, "b n d"]:
        """Mix the tokens: ``to_out(gate * attention_fn((q k^T + bias) / length) v) + x``."""
        tap = self.tap
        normed = tap("normed", self.norm(x))
        value, gate = self.to_hidden(normed).chunk(2, dim=-1)
        value, gate = tap("value", value), tap("gate", gate)
        q, k = self.offsetscale(self.to_qk(normed))
        scores = (tap("q", q) @ tap("k", k).mT + self.rel_pos_bias(x.shape[1])) / length[..., None]
        weights = ATTENTION_FUNCTIONS[self.config.attention_fn](scores).masked_fill(~visible, 0.0)
        mixed = tap("mixed", tap("weights", weights) @ value)
        return tap("out", self.to_out(gate * mixed) + x)


class GauModel(ReferenceModel):
    """Token embedding, gated attention units and a language-model head."""

    def __init__(self, config: GauConfig) -> None:
        """Create the model with random weights."""
        super().__init__()
        self.config: GauConfig = config
        self.token_emb = nn.Embedding(config.vocab_size, config.dim)
        self.abs_pos_emb = ScaledSinusoid(config.dim)
        self.layers = nn.ModuleList(GauLayer(config) for _ in range(config.depth))
        self.to_logits = nn.Sequential(nn.LayerNorm(config.dim), nn.Linear(config.dim, config.vocab_size))
        self.tap = Tap()

    def forward(
        self, input_ids: Int[Tensor, "b n"], attention_mask: Int[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n vocab"]:
        """Return the logits of every position.

        Args:
            input_ids: Token ids.
            attention_mask: Nonzero for real tokens; every row is padded on the right.
        """
        seq_len = input_ids.shape[1]
        positions = torch.arange(seq_len, device=input_ids.device)
        valid, length = compute_valid_tokens(input_ids, attention_mask)
        if self.config.mask_divisor == "padded":
            length = torch.full_like(length, seq_len)
        visible = valid[:, None, :]
        if self.config.causal:
            visible = visible & build_causal_mask(seq_len, input_ids.device)
        x = self.tap("embedding", self.token_emb(input_ids) + self.abs_pos_emb(positions))
        for layer in self.layers:
            x = layer(x, visible=visible, length=length)
        return self.to_logits(x)
