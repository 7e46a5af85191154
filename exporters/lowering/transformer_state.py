"""The graphs of a causal ``transformer`` that carry keys and values of all earlier tokens.

A layer has a place for each token that there is room for. New keys and values are put into the places of their
positions, and a query sees the keys up to its own: what stands behind them does not matter, so that rows may be of
different lengths, and a state has room to grow. Keys are turned by their positions before they are put there.

In ``prefill``, the last real token of a row stands in for what is beyond it: it is put into its place once more.

Axes: b batch, n token, h head, j place, d model, s head width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import nn

from flash_export.config import DECODE, PREFILL
from flash_export.exporters.lowering.base import StateGraphs
from flash_export.exporters.lowering.chunks import count_tokens
from flash_export.exporters.lowering.multihead import LoweredMultiheadLayer
from flash_export.exporters.lowering.precision import FP32, widen
from flash_export.exporters.lowering.transformer import TRANSFORMER_FORWARD, LoweredFullAttention
from flash_export.exporters.spelling import put_at, take_at
from flash_export.interface import PAST, Positions, TensorSpec
from flash_export.models.multihead import HIDDEN_SCORE

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from flash_export.exporters.lowering.multihead import LoweredMultihead
    from flash_export.exporters.lowering.precision import Precision
    from flash_export.models.transformer import TransformerConfig

# What a layer carries, and the values whose precision it has.
_TENSORS = {"k": "heads", "v": "value"}


class Places(NamedTuple):
    """Where the tokens of each row go, and what they see.

    Attributes:
        where: Row, head and place of each token, ``(b, h, n, 3)``.
        hidden: What is added to the scores, by which no later key is seen, ``(b, 1, n, j)``.
        turns: Cosines and sines that queries and keys are turned by, ``(b, n, 1, s)``; None: they are not.
    """

    where: Int[Tensor, "b h n 3"]
    hidden: Float[Tensor, "b 1 n j"]
    turns: tuple[Tensor, Tensor] | None


def describe_state(
    config: TransformerConfig, batch: int | str, prefix: str, precision: Precision = FP32
) -> tuple[TensorSpec, ...]:
    """Return the tensors of the state, in the order in which the graphs take and return them."""
    shape = (batch, config.num_heads, PAST, config.head_dim)
    layers = (
        TensorSpec(f"{prefix}{layer}.{name}", precision.enter_block(layer).get_cache_dtype(value), shape)
        for layer in range(config.depth)
        for name, value in _TENSORS.items()
    )
    return (TensorSpec(f"{prefix}position", "int64", (batch, 1), Positions()), *layers)


class StatefulLayer(LoweredMultiheadLayer):
    """One block over new tokens and the places of all earlier ones, with the weights of a lowered one."""

    def __init__(self, layer: LoweredMultiheadLayer, *, is_written_out: bool) -> None:
        """Share the weights of a layer, under the same names."""
        nn.Module.__init__(self)
        self.config, self.precision, self.attention = layer.config, layer.precision, layer.attention
        self.norm, self.norm_gain, self.turner = layer.norm, layer.norm_gain, layer.turner
        self.query, self.key, self.value, self.out = layer.query, layer.key, layer.value, layer.out
        self.ff_norm, self.ff_norm_gain, self.feed_forward = layer.ff_norm, layer.ff_norm_gain, layer.feed_forward
        self.is_written_out = is_written_out

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "b n d"],
        places: Places,
        keys: Float[Tensor, "b h j s"],
        values: Float[Tensor, "b h j s"],
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b h j s"], Float[Tensor, "b h j s"]]:
        """Mix the tokens, and then the channels of each; return keys and values with theirs in them too."""
        precision, attention = self.precision, cast("LoweredFullAttention", self.attention)
        q, k, v = (one.transpose(1, 2) for one in self.project(x, places.turns))
        keys = put_at(keys, places.where, _store(k, "heads", precision))
        values = put_at(values, places.where, _store(v, "value", precision))
        k, v = precision.narrow(keys, "heads"), precision.narrow(values, "value")
        mixed = attention.mix(q, k, v, places.hidden, is_written_out=self.is_written_out)
        return self.finish(x, mixed), keys, values


def _store(x: Tensor, name: str, precision: Precision) -> Tensor:
    """Return a value in the dtype that it is carried in."""
    return widen(x) if precision.get_cache_dtype(name) == "float32" else x


class StatefulTransformer(nn.Module):
    """A lowered causal model whose graph takes and returns a state.

    Attributes:
        is_written_out: Whether attention is no operator of its own at any opset.
    """

    is_written_out = False

    def __init__(self, lowered: LoweredMultihead) -> None:
        """Share the weights of a lowered model."""
        super().__init__()
        self.config, self.precision = lowered.config, lowered.precision
        self.embedding, self.turner, self.head = lowered.embedding, lowered.turner, lowered.head
        layers = cast("list[LoweredMultiheadLayer]", lowered.layers)
        self.layers = nn.ModuleList(StatefulLayer(layer, is_written_out=self.is_written_out) for layer in layers)

    def read(
        self, input_ids: Int[Tensor, "b n"], positions: Int[Tensor, "b n"], state: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, "b n vocab"], list[Tensor]]:
        """Return the logits of tokens at these positions, and keys and values of all layers with theirs in them."""
        numbers = positions.float()
        x = self.embedding(input_ids, numbers.unsqueeze(-1))
        places = self._find_places(positions, numbers, state[1].shape[2])
        carried: list[Tensor] = []
        for layer, past_keys, past_values in zip(self.layers, state[1::2], state[2::2], strict=True):
            x, keys, values = layer(x, places, past_keys, past_values)
            carried += (keys, values)
        return self.head(x), carried

    def _find_places(self, positions: Int[Tensor, "b n"], numbers: Float[Tensor, "b n"], capacity: int) -> Places:
        rows = torch.arange(positions.shape[0]).unsqueeze(-1).unsqueeze(-1)
        heads = torch.arange(self.config.num_heads).unsqueeze(-1)
        where = torch.stack(torch.broadcast_tensors(rows, heads, positions.unsqueeze(1)), dim=-1)
        hidden = (count_tokens(capacity) > numbers.unsqueeze(-1)).float() * HIDDEN_SCORE
        turns = None if self.turner is None else self.turner.compute_turns(numbers)
        return Places(where, hidden.unsqueeze(1), turns)


class PrefillTransformer(StatefulTransformer):
    """``forward(input_ids, lengths, state) -> logits, state`` for any number of tokens at any position."""

    def forward(
        self, input_ids: Int[Tensor, "b n"], lengths: Int[Tensor, " b"], state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the logits of every position, and the state after the last token of each row."""
        tokens = torch.minimum(torch.arange(input_ids.shape[1]), lengths.unsqueeze(-1) - 1)  # (b, n)
        rows = torch.arange(input_ids.shape[0]).unsqueeze(-1).expand_as(tokens)
        ids = take_at(input_ids, torch.stack((rows, tokens), dim=-1))
        logits, carried = self.read(ids, state[0] + tokens, state)
        return logits, (state[0] + lengths.unsqueeze(-1), *carried)


class DecodeTransformer(StatefulTransformer):
    """``forward(input_ids, state) -> logits, state`` for one token per row, at any position.

    Of ONNX's operator for attention, TensorRT-RTX 1.7.1 has no kernel for a single query.
    """

    is_written_out = True

    def forward(self, input_ids: Int[Tensor, "b 1"], state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the logits of the token, and the state with it."""
        logits, carried = self.read(input_ids, state[0], state)
        return logits, (state[0] + 1, *carried)


TRANSFORMER = replace(
    TRANSFORMER_FORWARD,
    state=StateGraphs({PREFILL: PrefillTransformer, DECODE: DecodeTransformer}, describe_state),
    written_out=frozenset({DECODE}),
)
