"""Family ``gau_alpha``: a masked language model of gated attention units with a softmax, as gau-alpha 0.0.3 has it.

Source of the maths: https://kexue.fm/archives/9052, and for the length scale https://kexue.fm/archives/8823. Blocks are
post-norm: what one returns is what the next takes, and there is no other norm. The decoder is the token embedding.

Axes: b batch, n sequence, d model width, s query/key width, e hidden width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from flash_export.errors import ConfigError
from flash_export.layers.tap import Tap
from flash_export.models.base import ModelConfig, ReferenceModel, compute_valid_tokens
from flash_export.models.token_model import describe_token_model
from flash_export.probes import Quantity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from flash_export.interface import Interface

THETA = 10000.0
NORM_EPS = 1e-12
TRAINED_LEN = 512  # length at which the scale of the scores is that of an ordinary softmax
QUANTITIES = {
    "embedding": Quantity("embedding", place="before"),
    "gate": Quantity("gates"),
    "value": Quantity("values"),
    "q": Quantity("queries, scaled by the length"),
    "k": Quantity("keys"),
    "weights": Quantity("attention weights", "pairs"),
    "mixed": Quantity("attended values"),
    "sum": Quantity("output of the block before its norm", is_normed=True, is_fp32=True),
    "out": Quantity("output of the block"),
}


@dataclass(frozen=True)
class MaskDialect:
    """What a library does to the scores of masked keys, and which length it scales by.

    Attributes:
        hidden_score: Replaces the score of a masked key before scores are scaled by the length, so that it is 0 where
            the scale is: of a single token; -inf: masked keys never count.
        min_len: Shortest length that the scale distinguishes.
    """

    hidden_score: float = -math.inf
    min_len: int = 1

    @property
    def is_exact(self) -> bool:
        """Whether padding changes nothing."""
        return self.hidden_score == -math.inf


MASK_DIALECTS = {
    "exact": MaskDialect(),
    "gau_alpha": MaskDialect(hidden_score=-1e4),  # 0.0.3
    "bert4torch": MaskDialect(hidden_score=-1e12),
    "bert4keras": MaskDialect(min_len=16),  # from 0.11.5 on
}


@dataclass(frozen=True)
class GauAlphaConfig(ModelConfig):
    """Hyper-parameters of a GAU-alpha model.

    Attributes:
        vocab_size: Number of tokens.
        dim: Model width d.
        depth: Number of gated attention units.
        hidden_dim: Width e of values and gates.
        qk_dim: Width s of the shared queries and keys, all of which is turned by position (even).
        num_token_types: Rows of the token type embedding; the first is added to every token.
        mask_dialect: ``exact``: masked keys never count, and scores are scaled by the number of tokens of the row.
            ``gau_alpha`` and ``bert4torch`` do as those libraries do: a row of a single token attends to its padding.
            ``bert4keras`` scales rows of fewer than 16 tokens as if they had 16.
    """

    model_type: ClassVar[str] = "gau_alpha"
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {"mask_dialect": tuple(MASK_DIALECTS)}

    vocab_size: int
    dim: int
    depth: int
    hidden_dim: int
    qk_dim: int = 128
    num_token_types: int = 2
    mask_dialect: str = "exact"

    def __post_init__(self) -> None:
        """Check the fields, and that queries and keys are pairs to be turned."""
        super().__post_init__()
        if self.qk_dim % 2:
            raise ConfigError(f"qk_dim={self.qk_dim} is odd; rotary turns pairs of channels, so use an even width")

    @property
    def dialect(self) -> MaskDialect:
        """What is done to masked keys."""
        return MASK_DIALECTS[self.mask_dialect]

    @property
    def interface(self) -> Interface:
        """Tokens to logits."""
        return describe_token_model(
            self.vocab_size,
            padding="exact" if self.dialect.is_exact else "counted",
            needs_mask=True,
            is_causal=False,
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
        """Every token attends to those after it."""
        return "GAU-alpha attends in both directions, so that every new token changes all that came before"

    def count_macs(self, seq_len: int) -> int:
        """Count the attention over the whole length, the projections and the decoder."""
        projections = 3 * self.dim * self.hidden_dim + self.dim * self.qk_dim
        attention = seq_len * (self.qk_dim + self.hidden_dim)
        return seq_len * (self.depth * (projections + attention) + self.dim * self.vocab_size)

    def estimate_bytes(self, batch: int, seq_len: int) -> int:
        """Count what is alive at the widest point of a block, and the logits of three models."""
        per_token = 32 * (self.dim + self.hidden_dim + self.qk_dim) + 24 * self.vocab_size
        return batch * seq_len * (per_token + 28 * seq_len)


def normalise(x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    """Divide by the root mean square, ``sqrt(mean(x²) + 1e-12)``; there is nothing to learn."""
    return x / (x.square().mean(dim=-1, keepdim=True) + NORM_EPS).sqrt()


def compute_frequencies(qk_dim: int) -> Float[Tensor, " s/2"]:
    """Return the angle per position of each pair of channels, ``THETA ** (-2i / s)``, in fp32 as gau-alpha does."""
    return THETA ** (-2 * torch.arange(qk_dim // 2, dtype=torch.float32) / qk_dim)


def turn_pairs(x: Float[Tensor, "b n s"]) -> Float[Tensor, "b n s"]:
    """Turn channels ``2i`` and ``2i + 1`` of the token at position p by the angle ``p * frequencies[i]``.

    Angles are those of fp32, in float64 too, as the model was trained. The turned pairs stand side by side, all first
    channels and then all second ones, in queries and keys alike, so that their products are the same.
    """
    positions = torch.arange(x.shape[1], dtype=torch.float32)
    angles = positions[:, None] * compute_frequencies(x.shape[2])
    cos, sin = angles.cos().to(x), angles.sin().to(x)
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


def compute_length_scale(length: Int[Tensor, "b 1"], min_len: int) -> Float[Tensor, "b 1 1"]:
    """Return what scores are scaled by, ``log(length) / log(512)``: 0 for one token, 1 at the length of training."""
    return (length.clamp(min=min_len).double().log() / math.log(TRAINED_LEN))[..., None]


class GauAlphaLayer(nn.Module):
    """One gated attention unit with a softmax, its residual and the norm after it."""

    def __init__(self, config: GauAlphaConfig) -> None:
        """Create the layer of a model with this config."""
        super().__init__()
        self.config = config
        self.i_dense = nn.Linear(config.dim, 2 * config.hidden_dim + config.qk_dim, bias=False)
        self.gamma = nn.Parameter(torch.ones(2, config.qk_dim))  # of queries and keys
        self.o_dense = nn.Linear(config.hidden_dim, config.dim, bias=False)
        self.tap = Tap()

    def forward(
        self, x: Float[Tensor, "b n d"], *, visible: Bool[Tensor, "b 1 n"], length: Int[Tensor, "b 1"]
    ) -> Float[Tensor, "b n d"]:
        """Mix the tokens: ``norm(x + o_dense(gate * softmax(q k^T) value))``.

        Scores are divided by ``sqrt(s)`` and multiplied by the length scale; both are in the queries here.
        """
        tap, config, dialect = self.tap, self.config, self.config.dialect
        widths = [config.hidden_dim, config.hidden_dim, config.qk_dim]
        gate, value, z = F.silu(self.i_dense(x)).split(widths, dim=-1)
        gate, value = tap("gate", gate), tap("value", value)
        scale = compute_length_scale(length, dialect.min_len).to(x)
        q = tap("q", turn_pairs(z * self.gamma[0]) * scale / math.sqrt(config.qk_dim))
        k = tap("k", turn_pairs(z * self.gamma[1]))
        hidden_score = torch.full_like(scale, -math.inf) if dialect.is_exact else dialect.hidden_score * scale
        scores = torch.where(visible, q @ k.mT, hidden_score)
        mixed = tap("mixed", tap("weights", scores.softmax(dim=-1)) @ value)
        return tap("out", normalise(tap("sum", x + self.o_dense(gate * mixed))))


class GauAlphaModel(ReferenceModel):
    """Token embedding, gated attention units, and the token embedding again as the decoder."""

    def __init__(self, config: GauAlphaConfig) -> None:
        """Create the model with random weights."""
        super().__init__()
        self.config: GauAlphaConfig = config
        self.token_emb = nn.Embedding(config.vocab_size, config.dim)
        self.token_type_emb = nn.Embedding(config.num_token_types, config.dim)
        self.layers = nn.ModuleList(GauAlphaLayer(config) for _ in range(config.depth))
        self.tap = Tap()

    def forward(
        self, input_ids: Int[Tensor, "b n"], attention_mask: Int[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n vocab"]:
        """Return the logits of every position, for tokens that are all of the first type.

        Args:
            input_ids: Token ids. None of them is special: padding is what the mask says.
            attention_mask: Nonzero for real tokens; every row is padded on the right. A row of nothing but padding, of
                which no attention can be taken, is read as if all of it was real, at a length of 1.
        """
        valid, length = compute_valid_tokens(input_ids, attention_mask)
        visible = (valid | ~valid.any(dim=1, keepdim=True))[:, None]
        x = self.tap("embedding", normalise(self.token_emb(input_ids) + self.token_type_emb.weight[0]))
        for layer in self.layers:
            x = layer(x, visible=visible, length=length)
        return x @ self.token_emb.weight.mT
