"""What the graphs of a causal ``flash`` model carry of the past, in a state of constant size.

Of the past, a layer needs the sum of ``k^T v`` over all chunks before the open one, and the tokens of the open chunk. A
cache of one chunk holds the open chunk and, in the slots that it has not reached, the tokens of the chunk before: they
are weighed as linear attention does. A new token takes the slot of the token one chunk earlier, which moves into the
sum. So no step differs from another, and a chunk that fills up needs no branch.

Axes: b batch, c slot of the cache, d model, e hidden, s query/key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

from torch import nn

from flash_export.exporters.lowering.flash import GatedOutput
from flash_export.exporters.lowering.precision import FP32, widen
from flash_export.exporters.marks import mark
from flash_export.interface import Positions, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from flash_export.exporters.lowering.flash import LoweredFlash, LoweredFlashLayer
    from flash_export.exporters.lowering.precision import Precision
    from flash_export.models.flash import FlashConfig


class LayerState(NamedTuple):
    """What one layer keeps of the past of each row; ``shift`` only where tokens are shifted."""

    kv: Tensor  # (b, s, e)
    quad_k: Tensor  # (b, c, s)
    lin_k: Tensor  # (b, c, s)
    v: Tensor  # (b, c, e)
    shift: Tensor | None = None  # (b, d / 2)


def describe_state(
    config: FlashConfig, batch: int | str, prefix: str, precision: Precision = FP32
) -> tuple[TensorSpec, ...]:
    """Return the tensors of the state, in the order in which the graphs take and return them.

    The sum is fp32 in every precision: what a token adds to it would be lost in half.
    """
    # Shape, and the value whose precision a tensor has.
    tensors: dict[str, tuple[tuple[int, ...], str | None]] = {
        "kv": ((config.qk_dim, config.hidden_dim), None),
        "quad_k": ((config.chunk_size, config.qk_dim), "heads"),
        "lin_k": ((config.chunk_size, config.qk_dim), "heads"),
        "v": ((config.chunk_size, config.hidden_dim), "value"),
    }
    if config.shift_tokens:
        tensors["shift"] = ((config.dim // 2,), "normed")
    layers = (
        TensorSpec(
            f"{prefix}{layer}.{name}",
            "float32" if value is None else precision.enter_block(layer).get_cache_dtype(value),
            (batch, *shape),
        )
        for layer in range(config.depth)
        for name, (shape, value) in tensors.items()
    )
    return (TensorSpec(f"{prefix}position", "int64", (batch, 1), Positions()), *layers)


class StatefulLayer(GatedOutput):
    """The weights of a lowered layer, under the same names."""

    def __init__(self, layer: LoweredFlashLayer) -> None:
        """Share the weights of a layer."""
        super().__init__()
        self.norm, self.projection, self.heads = layer.norm, layer.projection, layer.heads
        self.quadratic, self.precision = layer.quadratic, layer.precision
        self.out_weight, self.out_bias = layer.out_weight, layer.out_bias
        self.norm_gain, self.head_factors, self.factor = layer.norm_gain, layer.head_factors, layer.factor

    def mark_heads(self, heads: Sequence[Tensor]) -> list[Tensor]:
        """Mark queries and keys, which are in the order of the factors."""
        factors = self.head_factors.items()
        return [
            mark(head, name, 1 / factor, order="heads") for head, (name, factor) in zip(heads, factors, strict=True)
        ]

    def mark_state(self, state: LayerState) -> LayerState:
        """Mark what is carried on."""
        quad_scale, lin_scale = (1 / self.head_factors[name] for name in ("quad_k", "lin_k"))
        return LayerState(
            kv=mark(state.kv, "state_kv", lin_scale, order="heads", axis=-2),
            quad_k=mark(state.quad_k, "state_quad_k", quad_scale, order="heads"),
            lin_k=mark(state.lin_k, "state_lin_k", lin_scale, order="heads"),
            v=mark(state.v, "state_v"),
            shift=None if state.shift is None else mark(state.shift, "state_shift", self.norm_gain),
        )

    def gate_mixed(self, gate: Float[Tensor, "*b e"], mixed: Float[Tensor, "*b e"]) -> Float[Tensor, "*b e"]:
        """Gate what was attended to."""
        return self.apply_gate(mark(gate, "gate"), mark(mixed, "mixed", self.factor))

    def finish(self, x: Float[Tensor, "*b d"], gated: Float[Tensor, "*b e"]) -> Float[Tensor, "*b d"]:
        """Project what passed the gate, and add the residual."""
        return mark(self.project_out(x, gated), "out", order="channels")

    def multiply_chunks(self, k: Float[Tensor, "*b c s"], v: Float[Tensor, "*b c e"]) -> Float[Tensor, "*b s e"]:
        """Return ``k^T v`` of each chunk in fp32, in which they are summed."""
        return widen(self.precision.multiply(k.mT, v, "products"))

    def store(self, x: Tensor, name: str) -> Tensor:
        """Return a value in the dtype that it is carried in."""
        return widen(x) if self.precision.get_cache_dtype(name) == "float32" else x


class StatefulFlash(nn.Module):
    """A lowered causal model whose graph takes and returns a state."""

    def __init__(self, lowered: LoweredFlash, layer_type: type[StatefulLayer]) -> None:
        """Share the weights of a lowered model."""
        super().__init__()
        self.config, self.precision = lowered.config, lowered.precision
        self.embedding, self.rotary, self.head = lowered.embedding, lowered.rotary, lowered.head
        layers = cast("list[LoweredFlashLayer]", lowered.layers)
        self.layers = nn.ModuleList(layer_type(layer) for layer in layers)

    def split_state(self, state: tuple[Tensor, ...]) -> Iterator[LayerState]:
        """Return the state of each layer; the first tensor is the position."""
        size = (len(state) - 1) // self.config.depth
        return (LayerState(*state[start : start + size]) for start in range(1, len(state), size))

    @staticmethod
    def join_state(position: Tensor, layers: list[LayerState]) -> tuple[Tensor, ...]:
        """Return the tensors of a state in the graph's order."""
        return (position, *(tensor for layer in layers for tensor in layer if tensor is not None))
