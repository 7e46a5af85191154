"""Family ``flash_quad``: JunnYu's FLASH-Quad, a masked language model of gated attention units.

Source of the maths: ``flash/flash.py`` and ``flash/gau.py`` of https://github.com/JunnYu/FLASHQuad_pytorch, as of April
2022. Unlike family ``gau``, scores are divided by a constant, the number of positions that the model has, whatever the
length; the bias of scores has a number of its own for each distance; and queries and keys are turned by position. So
the longest length is part of the model.

Axes: b batch, n sequence, m all positions, d model width, s query/key width, e hidden width, w any width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from flash_export.errors import ConfigError, InputError
from flash_export.layers.activation import relu_squared
from flash_export.layers.position import spread_bias
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
NORM_EPS = 1e-5
QUANTITIES = {
    "embedding": Quantity("embedding after its norm", place="before", is_normed=True),
    "normed": Quantity("input after the norm"),
    "gate": Quantity("gates"),
    "value": Quantity("values"),
    "q": Quantity("queries"),
    "k": Quantity("keys"),
    "weights": Quantity("attention weights", "pairs"),
    "mixed": Quantity("attended values"),
    "out": Quantity("output of the block", is_normed=True),
    "transform": Quantity("projection before the decoder", place="after", is_normed=True),
}


@dataclass(frozen=True)
class FlashQuadConfig(ModelConfig):
    """Hyper-parameters of a FLASH-Quad model of JunnYu's.

    Attributes:
        vocab_size: Number of tokens.
        dim: Model width d (even).
        depth: Number of gated attention units.
        hidden_dim: Width e of values and gates.
        qk_dim: Width s of the shared queries and keys, all of which is turned by position (even).
        max_positions: Longest sequence m, and what scores are divided by.
        num_token_types: Rows of the token type embedding; the first is added to every token.
        norm_type: ``scalenorm``: by the root mean square, with one learned gain; or ``layernorm``.
        norm_eps: What is added to the mean square, or to the variance.
    """

    model_type: ClassVar[str] = "flash_quad"
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {"norm_type": ("scalenorm", "layernorm")}

    vocab_size: int
    dim: int
    depth: int
    hidden_dim: int
    qk_dim: int = 128
    max_positions: int = 512
    num_token_types: int = 2
    norm_type: str = "scalenorm"
    norm_eps: float = NORM_EPS

    def __post_init__(self) -> None:
        """Check the fields, and that positions have pairs of channels."""
        super().__post_init__()
        for name, width in (("dim", self.dim), ("qk_dim", self.qk_dim)):
            if width % 2:
                raise ConfigError(f"{name}={width} is odd; positions take channels in pairs, so use an even width")
        if self.norm_eps <= 0:
            raise ConfigError(f"norm_eps={self.norm_eps} is not usable; use a number above 0, such as {NORM_EPS}")

    @property
    def interface(self) -> Interface:
        """Tokens to logits, up to as many as there are positions."""
        return describe_token_model(self.vocab_size, needs_mask=True, is_causal=False, max_len=self.max_positions)

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
        return "this FLASH-Quad attends in both directions, so that every new token changes all that came before"

    def count_macs(self, seq_len: int) -> int:
        """Count the attention over the whole length, the projections and the head."""
        projections = 3 * self.dim * self.hidden_dim + self.dim * self.qk_dim
        attention = seq_len * (self.qk_dim + self.hidden_dim)
        head = self.dim * (self.dim + self.vocab_size)
        return seq_len * (self.depth * (projections + attention) + head)

    def estimate_bytes(self, batch: int, seq_len: int) -> int:
        """Count what is alive at the widest point of a block, the logits of three models, and the table of biases."""
        per_token = 32 * (self.dim + self.hidden_dim + self.qk_dim) + 24 * self.vocab_size
        return batch * seq_len * (per_token + 28 * seq_len) + 24 * self.max_positions**2


class RmsScaleNorm(nn.Module):
    """Divide by the root mean square, and multiply by one learned scalar: ``x / sqrt(mean(x²) + eps) * g``."""

    def __init__(self, eps: float) -> None:
        """Create the norm, of vectors of any width."""
        super().__init__()
        self.eps = eps
        self.g = nn.Parameter(torch.ones(1))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Normalise the last axis."""
        return x / (x.square().mean(dim=-1, keepdim=True) + self.eps).sqrt() * self.g


def build_norm(config: FlashQuadConfig) -> nn.Module:
    """Create a norm of vectors of the model's width."""
    if config.norm_type == "scalenorm":
        return RmsScaleNorm(config.norm_eps)
    return nn.LayerNorm(config.dim, config.norm_eps)


def compute_frequencies(width: int) -> Float[Tensor, " w/2"]:
    """Return the angle per position of each pair of channels, ``THETA ** (-2i / width)``, in fp32."""
    half = width // 2
    return THETA ** (-torch.arange(half, dtype=torch.float32) / half)


def compute_angles(num_positions: int, width: int) -> Float[Tensor, "n w/2"]:
    """Return the angle of each position and pair of channels, rounded to fp32 in float64 too: so it was trained."""
    return torch.arange(num_positions, dtype=torch.float32)[:, None] * compute_frequencies(width)


def compute_sinusoid(num_positions: int, dim: int) -> Float[Tensor, "n d"]:
    """Return the position embedding before its learned scale: sines, and then cosines."""
    angles = compute_angles(num_positions, dim)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def turn_halves(x: Float[Tensor, "b n s"]) -> Float[Tensor, "b n s"]:
    """Turn channel i of the first half and channel i of the second half by the token's i-th angle."""
    angles = compute_angles(x.shape[1], x.shape[2])
    cos, sin = angles.cos().to(x), angles.sin().to(x)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class FlashQuadLayer(nn.Module):
    """One pre-norm gated attention unit with its residual."""

    def __init__(self, config: FlashQuadConfig) -> None:
        """Create the layer of a model with this config."""
        super().__init__()
        self.config = config
        self.norm = build_norm(config)
        self.uv = nn.Linear(config.dim, 2 * config.hidden_dim + config.qk_dim)
        self.gamma = nn.Parameter(0.02 * torch.randn(2, config.qk_dim))  # of queries and keys
        self.beta = nn.Parameter(torch.zeros(2, config.qk_dim))
        self.w = nn.Parameter(0.02 * torch.randn(2 * config.max_positions - 1))  # by key position - query position
        self.o = nn.Linear(config.hidden_dim, config.dim)
        self.tap = Tap()

    def forward(self, x: Float[Tensor, "b n d"], *, visible: Bool[Tensor, "b n n"]) -> Float[Tensor, "b n d"]:
        """Mix the tokens: ``x + o(gate * relu²(q k^T / m + bias) value)``."""
        tap, config, seq_len = self.tap, self.config, x.shape[1]
        widths = [config.hidden_dim, config.hidden_dim, config.qk_dim]
        gate, value, z = F.silu(self.uv(tap("normed", self.norm(x)))).split(widths, dim=-1)
        gate, value = tap("gate", gate), tap("value", value)
        q, k = (turn_halves(z * gamma + beta) for gamma, beta in zip(self.gamma, self.beta, strict=True))
        bias = spread_bias(self.w)[:seq_len, :seq_len]
        scores = tap("q", q) @ tap("k", k).mT / config.max_positions + bias
        mixed = tap("mixed", tap("weights", relu_squared(scores) * visible) @ value)
        return tap("out", x + self.o(gate * mixed))


class FlashQuadModel(ReferenceModel):
    """Embeddings of tokens and positions, gated attention units, and the token embedding again as the decoder."""

    def __init__(self, config: FlashQuadConfig) -> None:
        """Create the model with random weights."""
        super().__init__()
        self.config: FlashQuadConfig = config
        self.token_emb = nn.Embedding(config.vocab_size, config.dim)
        self.token_type_emb = nn.Embedding(config.num_token_types, config.dim)
        self.position_scale = nn.Parameter(torch.full((1,), config.dim**-0.5))
        self.embedding_norm = build_norm(config)
        self.layers = nn.ModuleList(FlashQuadLayer(config) for _ in range(config.depth))
        self.transform = nn.Linear(config.dim, config.dim)
        self.transform_norm = build_norm(config)
        self.logit_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.tap = Tap()

    def forward(
        self, input_ids: Int[Tensor, "b n"], attention_mask: Int[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n vocab"]:
        """Return the logits of every position, for tokens that are all of the first type.

        Args:
            input_ids: Token ids. None of them is special: padding is what the mask says.
            attention_mask: Nonzero for real tokens; every row is padded on the right. Masked keys weigh nothing;
                masked queries attend to nothing, and their rows have no meaning.

        Raises:
            InputError: The sequence is longer than there are positions.
        """
        seq_len, config = input_ids.shape[1], self.config
        if seq_len > config.max_positions:
            raise InputError(f"seq_len={seq_len} exceeds the {config.max_positions} positions of the model; shorten it")
        valid, _ = compute_valid_tokens(input_ids, attention_mask)
        visible = valid[:, :, None] & valid[:, None, :]
        tokens = self.token_emb(input_ids) + self.token_type_emb.weight[0]
        positions = compute_sinusoid(seq_len, config.dim).to(tokens) * self.position_scale
        x = self.tap("embedding", self.embedding_norm(tokens + positions))
        for layer in self.layers:
            x = layer(x, visible=visible)
        hidden = self.tap("transform", F.silu(self.transform(x)))
        return self.transform_norm(hidden) @ self.token_emb.weight.mT + self.logit_bias
