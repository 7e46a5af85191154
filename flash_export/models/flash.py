"""Family ``flash``: FLASH with mixed chunk attention, in the dialect of flash-pytorch 0.1.9.

Source of the maths: arXiv 2202.10447, section 4 and code 8; flash-pytorch's ``FLASHTransformer``. Submodules
carry that library's names, so that its state dicts load without translation.

Axes: b batch, n sequence, g chunk, c position in a chunk, d model width, s query/key width, e hidden width, m number of
sums over keys and values, 1 or g.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from flash_export.errors import ConfigError
from flash_export.layers.activation import ATTENTION_FUNCTIONS
from flash_export.layers.attention import (
    OffsetScale,
    build_causal_mask,
    split_into_chunks,
    sum_kv_causal,
    sum_kv_global,
    weigh_keys,
)
from flash_export.layers.norm import build_norm
from flash_export.layers.position import RelativePositionBias, RotaryEmbedding, ScaledSinusoid, shift_tokens
from flash_export.layers.tap import Tap
from flash_export.models.base import ModelConfig, ReferenceModel, compute_valid_tokens
from flash_export.models.flash_state import FlashState
from flash_export.models.token_model import describe_token_model
from flash_export.probes import Quantity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from flash_export.interface import Interface

MIN_QK_DIM = 2
MAX_CHUNK_SIZE = 8192  # each layer has a table of the relative positions in a chunk, 256 MiB of it
HEADS = ("quad_q", "lin_q", "quad_k", "lin_k")  # in the order of the affine maps
BOTH, LOCAL, GLOBAL = "both", "local", "global"
# What is computed for the sake of one branch alone.
_OF_BRANCH = {LOCAL: ("quad_q", "quad_k", "weights", "quadratic"), GLOBAL: ("lin_q", "lin_k", "kv", "linear")}
QUANTITIES = {
    "embedding": Quantity("token and position embedding", place="before", is_normed=True),
    "normed": Quantity("input after norm and token shift"),
    "value": Quantity("values", is_zero_in_padding=True),
    "gate": Quantity("gates"),
    "quad_q": Quantity("quadratic queries"),
    "quad_k": Quantity("quadratic keys"),
    "lin_q": Quantity("linear queries"),
    "lin_k": Quantity("linear keys"),
    "weights": Quantity("quadratic attention weights", "pairs"),
    "quadratic": Quantity("quadratic branch"),
    "kv": Quantity("linear key-value sum", "sums"),
    "linear": Quantity("linear branch"),
    "out": Quantity("output of the block", is_normed=True),
}


@dataclass(frozen=True)
class FlashConfig(ModelConfig):
    """Hyper-parameters of a FLASH model.

    Attributes:
        vocab_size: Number of tokens.
        dim: Model width d (even).
        depth: Number of FLASH layers.
        hidden_dim: Width e of values and gates; twice ``dim`` in the paper.
        chunk_size: Tokens a chunk, C; flash-pytorch calls it ``group_size``.
        qk_dim: Width s of the shared queries and keys.
        causal: Whether a token sees only itself and earlier ones.
        norm_type: ``scalenorm`` or ``layernorm``.
        shift_tokens: Whether half the normed channels come from the token before.
        attention_fn: ``relu2``, ``laplace``, or ``laplace_wide``, which is flash-pytorch 0.1.6's Laplace.
        sum_over_chunks: Non-causal only: whether the linear branch sums over the whole sequence or stays in its chunk.
        mask_divisor: Non-causal only: the linear branch divides by the number of ``valid`` tokens of a row, or by
            the ``padded`` length of the batch as flash-pytorch does. They agree where nothing is masked.
        branches: ``both``; or ``local``, the quadratic branch alone, or ``global``, the linear branch alone: the
            paper's ablation.
    """

    model_type: ClassVar[str] = "flash"
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "norm_type": ("scalenorm", "layernorm"),
        "attention_fn": tuple(ATTENTION_FUNCTIONS),
        "mask_divisor": ("valid", "padded"),
        "branches": (BOTH, LOCAL, GLOBAL),
    }

    vocab_size: int
    dim: int
    depth: int
    hidden_dim: int
    chunk_size: int = 256
    qk_dim: int = 128
    causal: bool = False
    norm_type: str = "scalenorm"
    shift_tokens: bool = True
    attention_fn: str = "relu2"
    sum_over_chunks: bool = True
    mask_divisor: str = "valid"
    branches: str = BOTH

    def __post_init__(self) -> None:
        """Check the fields, and that the position embeddings have something to turn."""
        super().__post_init__()
        if self.dim % 2:
            raise ConfigError(f"dim={self.dim} is odd; the sinusoidal position embedding needs an even width")
        if self.chunk_size > MAX_CHUNK_SIZE:
            table_gib = 4 * self.chunk_size**2 / 2**30
            raise ConfigError(
                f"chunk_size={self.chunk_size} (group_size of flash-pytorch) is not usable: the table of relative "
                f"positions of one layer would take {table_gib:,.1f} GiB; use at most {MAX_CHUNK_SIZE}"
            )
        if self.qk_dim < MIN_QK_DIM:
            raise ConfigError(f"qk_dim={self.qk_dim} is too narrow; rotary embedding turns pairs, so use at least 2")

    @property
    def interface(self) -> Interface:
        """Tokens to logits; the non-causal linear branch sums over, and divides by, the whole length."""
        return describe_token_model(
            self.vocab_size,
            padding="exact" if self.mask_divisor == "valid" else "counted",
            needs_mask=not self.causal,
            is_causal=self.causal,
            window=self.chunk_size,
        )

    @property
    def num_blocks(self) -> int:
        """Number of FLASH layers."""
        return self.depth

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """What is computed on the way."""
        return {name: quantity for name, quantity in QUANTITIES.items() if self.has_value(name)}

    @property
    def carried_state(self) -> FlashState | None:
        """Keys and values of a chunk, and one sum over all before them."""
        if self.state_refusal is not None:
            return None
        return FlashState(self.quantities, self.chunk_size, self.shift_tokens)

    @property
    def heads(self) -> tuple[str, ...]:
        """Queries and keys of the branches that there are, in the order of the affine maps."""
        return tuple(name for name in HEADS if self.has_value(name))

    def has_value(self, name: str) -> bool:
        """Return whether a value is computed for a branch that there is."""
        return self.branches == BOTH or all(
            name not in values for branch, values in _OF_BRANCH.items() if branch != self.branches
        )

    @property
    def state_refusal(self) -> str | None:
        """A token of a causal model needs its chunk, and one matrix a layer of what came before it."""
        if not self.causal:
            return "it is not causal, so that every token changes all tokens before it"
        if self.branches != BOTH:
            return f"it has the {self.branches} branch alone, which is for comparison"
        return None

    def count_macs(self, seq_len: int) -> int:
        """Count both branches and the projections, on the length padded to whole chunks."""
        padded_len = seq_len + -seq_len % self.chunk_size
        projections = 3 * self.dim * self.hidden_dim + self.dim * self.qk_dim
        quadratic = self.chunk_size * (self.qk_dim + self.hidden_dim) if self.branches != GLOBAL else 0
        linear = 2 * self.qk_dim * self.hidden_dim if self.branches != LOCAL else 0
        return self.depth * padded_len * (projections + quadratic + linear) + seq_len * self.dim * self.vocab_size

    def estimate_bytes(self, batch: int, seq_len: int) -> int:
        """Count what is alive at the widest point of a layer, and the logits of three models."""
        padded_len = seq_len + -seq_len % self.chunk_size
        width = 4 * (self.dim + self.hidden_dim + self.qk_dim) + 2 * self.chunk_size
        sums = 3 * self.qk_dim * self.hidden_dim // self.chunk_size
        return batch * padded_len * (8 * (width + sums) + 16 * self.vocab_size)


class FlashLayer(nn.Module):
    """One pre-norm FLASH layer with its residual."""

    def __init__(self, config: FlashConfig) -> None:
        """Create the layer of a model with this config."""
        super().__init__()
        self.config = config
        self.norm = build_norm(config.norm_type, config.dim)
        if config.branches != GLOBAL:
            self.rel_pos_bias = RelativePositionBias(config.qk_dim**0.5, config.causal)
        self.to_hidden = nn.Sequential(nn.Linear(config.dim, 2 * config.hidden_dim), nn.SiLU())
        self.to_qk = nn.Sequential(nn.Linear(config.dim, config.qk_dim), nn.SiLU())
        self.qk_offset_scale = OffsetScale(config.qk_dim, heads=len(config.heads))
        self.to_out = nn.Linear(config.hidden_dim, config.dim)
        self.tap = Tap()

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        *,
        rotary: RotaryEmbedding,
        positions: Int[Tensor, " n"],
        valid: Bool[Tensor, "b n"],
        length: Int[Tensor, "b 1"],
    ) -> Float[Tensor, "b n d"]:
        """Mix the tokens; ``length`` is the divisor of the non-causal linear branch."""
        config, tap, seq_len = self.config, self.tap, x.shape[1]
        normed = self.norm(x)
        if config.shift_tokens:
            normed = shift_tokens(normed)
        normed = tap("normed", normed)
        value, gate = self.to_hidden(normed).chunk(2, dim=-1)
        value, gate = tap("value", value * valid[..., None]), tap("gate", gate)
        heads = {
            name: split_into_chunks(tap(name, rotary(head, positions)), config.chunk_size)
            for name, head in zip(config.heads, self.qk_offset_scale(self.to_qk(normed)), strict=True)
        }
        value = split_into_chunks(value, config.chunk_size)  # (b, g, c, e)
        branches = []
        if config.branches != GLOBAL:
            branches.append(tap("quadratic", self.weigh(heads["quad_q"], heads["quad_k"], valid) @ value))
        if config.branches != LOCAL:
            branches.append(tap("linear", heads["lin_q"] @ self.sum_kv(heads["lin_k"], value, length)))
        mixed = reduce(torch.add, branches).flatten(1, 2)[:, :seq_len]
        return tap("out", self.to_out(gate * mixed) + x)

    def weigh(
        self, q: Float[Tensor, "b g c s"], k: Float[Tensor, "b g c s"], valid: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b g c c"]:
        """Return the weight of each key of the quadratic branch for each query of its chunk."""
        config = self.config
        visible = split_into_chunks(valid[..., None], config.chunk_size).mT  # (b, g, 1, c)
        if config.causal:
            visible = visible & build_causal_mask(config.chunk_size, q.device)
        weights = weigh_keys(
            q,
            k,
            bias=self.rel_pos_bias(config.chunk_size),
            visible=visible,
            attention_fn=ATTENTION_FUNCTIONS[config.attention_fn],
        )
        return self.tap("weights", weights)

    def sum_kv(
        self, k: Float[Tensor, "b g c s"], v: Float[Tensor, "b g c e"], length: Int[Tensor, "b 1"]
    ) -> Float[Tensor, "b m s e"]:
        """Return what the queries of the linear branch see of keys and values."""
        if self.config.causal:
            return self.tap("kv", sum_kv_causal(k, v))
        over_chunks = self.config.sum_over_chunks
        return self.tap("kv", sum_kv_global(k, v, length=length[..., None, None], sum_over_chunks=over_chunks))


class FlashModel(ReferenceModel):
    """Token embedding, FLASH layers and a language-model head."""

    def __init__(self, config: FlashConfig) -> None:
        """Create the model with random weights."""
        super().__init__()
        self.config: FlashConfig = config
        self.token_emb = nn.Embedding(config.vocab_size, config.dim)
        self.abs_pos_emb = ScaledSinusoid(config.dim)
        self.rotary_pos_emb = RotaryEmbedding(config.qk_dim)
        self.layers = nn.ModuleList(FlashLayer(config) for _ in range(config.depth))
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
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        valid, length = compute_valid_tokens(input_ids, attention_mask)
        if self.config.mask_divisor == "padded":
            length = torch.full_like(length, input_ids.shape[1])
        x = self.tap("embedding", self.token_emb(input_ids) + self.abs_pos_emb(positions))
        for layer in self.layers:
            x = layer(x, rotary=self.rotary_pos_emb, positions=positions, valid=valid, length=length)
        return self.to_logits(x)
