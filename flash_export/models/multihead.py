"""What the multi-head models share: pre-norm blocks of attention and a feed-forward layer, each with its residual.

These are the systems that *Transformer Quality in Linear Time* (arXiv 2202.10447) compares FLASH with. A family is a
config and its attention; embedding, projections, feed-forward layer and head are here. Embedding and head are those of
family ``flash``, so that what differs between two systems is their blocks.

Axes: b batch, h head, n sequence, d model width, s head width, f feed-forward width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from flash_export.errors import ConfigError, InputError
from flash_export.layers.norm import build_norm
from flash_export.layers.position import RotaryEmbedding, ScaledSinusoid
from flash_export.layers.tap import Tap
from flash_export.models.base import ModelConfig, ReferenceModel, compute_valid_tokens
from flash_export.models.token_model import describe_token_model
from flash_export.probes import Quantity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from flash_export.interface import Interface

# A score that weighs exactly nothing in a softmax beside any other, and still is a number: where all keys are hidden,
# which they are for padding alone, all weigh the same.
HIDDEN_SCORE = -1e9
LEARNT, SINUSOID, ROTARY = "learnt", "sinusoid", "rotary"
MLP, SWIGLU, GEGLU = "mlp", "swiglu", "geglu"
QUANTITIES = {
    "embedding": Quantity("token and position embedding", place="before", is_normed=True),
    "normed": Quantity("input of the attention"),
    "q": Quantity("queries", has_heads=True),
    "k": Quantity("keys", has_heads=True),
    "value": Quantity("values"),
    "mixed": Quantity("attended values"),
    "attended": Quantity("output of the attention", is_normed=True),
    "ff_normed": Quantity("input of the feed-forward layer"),
    "hidden": Quantity("hidden channels of the feed-forward layer"),
    "out": Quantity("output of the block", is_normed=True),
}


@dataclass(frozen=True)
class MultiheadConfig(ModelConfig):
    """Hyper-parameters that all multi-head models have.

    Attributes:
        vocab_size: Number of tokens.
        dim: Model width d.
        depth: Number of blocks.
        num_heads: Number of heads h, which share the width between them.
        ff_dim: Width f of the feed-forward layer.
        ff_type: ``mlp``: GELU between two matrices; ``swiglu`` or ``geglu``: a gated linear unit in its place, the gate
            by SiLU or GELU (arXiv 2002.05202).
        norm_type: ``layernorm`` or ``scalenorm``, before attention and feed-forward layer; the last is a LayerNorm.
        positions: ``sinusoid``: added to the embedding, with one learnt scale; ``learnt``: a table, added too;
            ``rotary``: queries and keys are turned (arXiv 2104.09864), in interleaved pairs of channels.
        max_positions: Longest sequence of models that have something for each position; of no meaning for others.
        causal: Whether a token sees only itself and earlier ones.
    """

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "ff_type": (MLP, SWIGLU, GEGLU),
        "norm_type": ("layernorm", "scalenorm"),
        "positions": (SINUSOID, LEARNT, ROTARY),
    }
    vocab_size: int
    dim: int
    depth: int
    num_heads: int
    ff_dim: int
    ff_type: str = MLP
    norm_type: str = "layernorm"
    positions: str = SINUSOID
    max_positions: int = 4096
    causal: bool = False

    def __post_init__(self) -> None:
        """Check the fields, and that the width can be shared between heads and positions."""
        super().__post_init__()
        if self.dim % self.num_heads:
            raise ConfigError(f"dim={self.dim} cannot be shared between num_heads={self.num_heads}; use a multiple")
        if self.positions == SINUSOID and self.dim % 2:
            raise ConfigError(f"dim={self.dim} is odd; the sinusoidal position embedding needs an even width")
        if self.positions == ROTARY and self.head_dim % 2:
            raise ConfigError(
                f"dim={self.dim} and num_heads={self.num_heads} make heads of {self.head_dim} channels; rotary "
                "embedding turns pairs, so use an even number"
            )

    @property
    def head_dim(self) -> int:
        """Width s of a head."""
        return self.dim // self.num_heads

    @property
    def window(self) -> int:
        """Tokens that sequences are padded to a multiple of inside the model; 1 if they are not."""
        return 1

    @property
    def has_max_len(self) -> bool:
        """Whether something is stored for each position."""
        return self.positions == LEARNT

    @property
    def needs_mask(self) -> bool:
        """Whether padding changes the answer unless it is masked."""
        return not self.causal

    @property
    def interface(self) -> Interface:
        """Tokens to logits."""
        return describe_token_model(
            self.vocab_size,
            needs_mask=self.needs_mask,
            is_causal=self.causal,
            window=self.window,
            max_len=self.max_positions if self.has_max_len else None,
        )

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return self.depth

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """What is computed on the way."""
        return QUANTITIES

    @property
    def state_refusal(self) -> str | None:
        """No family here has graphs that carry a state, unless it says so."""
        if not self.causal:
            return "it is not causal, so that every token changes all tokens before it"
        return f"family {self.model_type} is exported for whole sequences alone"

    def count_attention_macs(self, seq_len: int) -> int:
        """Return the multiply-accumulates of the attention of one block, projections apart, over a whole sequence."""
        raise NotImplementedError

    def count_attention_values(self, seq_len: int) -> int:
        """Return how many numbers the attention of one block holds at a time, queries, keys and values apart."""
        raise NotImplementedError

    def count_macs(self, seq_len: int) -> int:
        """Count the attention, its four projections, the feed-forward layers and the head."""
        feed_forward = (2 if self.ff_type == MLP else 3) * self.dim * self.ff_dim
        per_token = self.depth * (4 * self.dim**2 + feed_forward) + self.dim * self.vocab_size
        return seq_len * per_token + self.depth * self.count_attention_macs(seq_len)

    def estimate_bytes(self, batch: int, seq_len: int) -> int:
        """Count what is alive at the widest point of a block, and the logits of three models."""
        per_token = 8 * (8 * self.dim + 4 * self.ff_dim) + 24 * self.vocab_size
        return batch * (seq_len * per_token + 24 * self.count_attention_values(seq_len))


class Tokens(NamedTuple):
    """What an attention knows of the tokens.

    Attributes:
        positions: Their numbers, ``(n,)``.
        valid: True for those that are no padding, ``(b, n)``.
        length: How many of a row are none, at least 1, ``(b, 1)``.
    """

    positions: Int[Tensor, " n"]
    valid: Bool[Tensor, "b n"]
    length: Int[Tensor, "b 1"]


def attend(
    q: Float[Tensor, "*b i s"], k: Float[Tensor, "*b j s"], v: Float[Tensor, "*b j s"], visible: Bool[Tensor, "*b i j"]
) -> Float[Tensor, "*b i s"]:
    """Return ``softmax(q k^T / sqrt(s)) v`` over the visible keys."""
    score = max(HIDDEN_SCORE, torch.finfo(q.dtype).min / 2)  # half, so that what is added to it does not overflow
    hidden = torch.zeros(visible.shape, dtype=q.dtype, device=q.device).masked_fill(~visible, score)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=hidden)


class FeedForward(nn.Module):
    """Two matrices with a GELU between them, or a gated linear unit."""

    def __init__(self, config: MultiheadConfig) -> None:
        """Create the layer of a model with this config."""
        super().__init__()
        self.ff_type = config.ff_type
        self.to_hidden = nn.Linear(config.dim, config.ff_dim * (1 if config.ff_type == MLP else 2))
        self.to_out = nn.Linear(config.ff_dim, config.dim)

    def compute_hidden(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n f"]:
        """Return the hidden channels: ``gelu(x W)``, or ``x W * activation(x V)``."""
        hidden = self.to_hidden(x)
        if self.ff_type == MLP:
            return F.gelu(hidden)
        value, gate = hidden.chunk(2, dim=-1)
        return value * (F.silu(gate) if self.ff_type == SWIGLU else F.gelu(gate))


class MultiheadLayer(nn.Module):
    """One block: attention and feed-forward layer, each after a norm and with its residual."""

    def __init__(self, config: MultiheadConfig, attention: nn.Module) -> None:
        """Create the block around an attention ``(q, k, v, tokens) -> mixed``, all ``(b, h, n, s)``."""
        super().__init__()
        self.config = config
        self.norm = build_norm(config.norm_type, config.dim)
        self.to_q, self.to_k, self.to_v = (nn.Linear(config.dim, config.dim) for _ in range(3))
        self.attention = attention
        self.to_out = nn.Linear(config.dim, config.dim)
        self.ff_norm = build_norm(config.norm_type, config.dim)
        self.feed_forward = FeedForward(config)
        self.tap = Tap()

    def forward(
        self, x: Float[Tensor, "b n d"], *, rotary: RotaryEmbedding | None, tokens: Tokens
    ) -> Float[Tensor, "b n d"]:
        """Mix the tokens, and then the channels of each."""
        tap = self.tap
        normed = tap("normed", self.norm(x))
        q, k = (self._turn(project(normed), rotary, tokens.positions) for project in (self.to_q, self.to_k))
        heads = (self._split(values) for values in (tap("q", q), tap("k", k), tap("value", self.to_v(normed))))
        mixed = tap("mixed", self.attention(*heads, tokens).transpose(1, 2).flatten(2))
        x = tap("attended", x + self.to_out(mixed))
        hidden = tap("hidden", self.feed_forward.compute_hidden(tap("ff_normed", self.ff_norm(x))))
        return tap("out", x + self.feed_forward.to_out(hidden))

    def _split(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b h n s"]:
        """Return the heads."""
        return x.unflatten(-1, (self.config.num_heads, -1)).transpose(1, 2)

    def _turn(
        self, x: Float[Tensor, "b n d"], rotary: RotaryEmbedding | None, positions: Int[Tensor, " n"]
    ) -> Float[Tensor, "b n d"]:
        """Turn each head by position, if the model does."""
        return x if rotary is None else rotary(self._split(x), positions).transpose(1, 2).flatten(2)


class MultiheadModel(ReferenceModel):
    """Embedding, blocks and a language-model head."""

    config: MultiheadConfig

    def __init__(self, config: MultiheadConfig) -> None:
        """Create the model with random weights."""
        super().__init__()
        self.config = config
        self.token_emb = nn.Embedding(config.vocab_size, config.dim)
        self.abs_pos_emb = self.pos_emb = self.rotary_pos_emb = None
        if config.positions == SINUSOID:
            self.abs_pos_emb = ScaledSinusoid(config.dim)
        elif config.positions == LEARNT:
            self.pos_emb = nn.Embedding(config.max_positions, config.dim)
        else:
            self.rotary_pos_emb = RotaryEmbedding(config.head_dim, max_rotary_dim=config.head_dim)
        self.layers = nn.ModuleList(
            MultiheadLayer(config, self.build_attention(index)) for index in range(config.depth)
        )
        self.to_logits = nn.Sequential(nn.LayerNorm(config.dim), nn.Linear(config.dim, config.vocab_size))
        self.tap = Tap()

    def build_attention(self, index: int) -> nn.Module:
        """Create the attention of a block."""
        raise NotImplementedError

    def forward(
        self, input_ids: Int[Tensor, "b n"], attention_mask: Int[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n vocab"]:
        """Return the logits of every position.

        Args:
            input_ids: Token ids.
            attention_mask: Nonzero for real tokens; every row is padded on the right.

        Raises:
            InputError: The sequence is longer than there are positions.
        """
        seq_len, config = input_ids.shape[1], self.config
        if config.has_max_len and seq_len > config.max_positions:
            raise InputError(f"seq_len={seq_len} exceeds the {config.max_positions} positions of the model; shorten it")
        valid, length = compute_valid_tokens(input_ids, attention_mask)
        tokens = Tokens(torch.arange(seq_len, device=input_ids.device), valid, length)
        x = self.token_emb(input_ids)
        if self.abs_pos_emb is not None:
            x = x + self.abs_pos_emb(tokens.positions)
        elif self.pos_emb is not None:
            x = x + self.pos_emb.weight[:seq_len]
        x = self.tap("embedding", x)
        for layer in self.layers:
            x = layer(x, rotary=self.rotary_pos_emb, tokens=tokens)
        return self.to_logits(x)
