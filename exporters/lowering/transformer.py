"""The export form of family ``transformer``.

Axes: b batch, n token, h head, s head width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from flash_export.exporters.lowering.multihead import LoweredAttention, describe_lowering
from flash_export.exporters.lowering.precision import widen
from flash_export.exporters.lowering.shared_modules import WEIGHTS
from flash_export.exporters.spelling import attend, reshape
from flash_export.models.multihead import HIDDEN_SCORE

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn

    from flash_export.exporters.lowering.multihead import Layout
    from flash_export.exporters.lowering.precision import Precision
    from flash_export.models.multihead import MultiheadConfig, MultiheadLayer

# What HIDDEN_SCORE is in half precision: with any score beside it, a number of fp16.
HIDDEN_HALF_SCORE = -(2.0**15)
# What is computed within the one operator, or goes into it.
_VALUES = ("heads", "value", "scores", WEIGHTS, "mixed")


class LoweredFullAttention(LoweredAttention):
    """Softmax attention over the whole sequence: written out, or as the one operator that later opsets have for it.

    Attributes:
        is_fused: Whether it is that operator.
    """

    def __init__(self, config: MultiheadConfig, precision: Precision) -> None:
        """Create the attention of a model with this config."""
        super().__init__(config, precision)
        self.is_fused = False

    def forward(
        self, q: Float[Tensor, "b n h s"], k: Float[Tensor, "b n h s"], v: Float[Tensor, "b n h s"], layout: Layout
    ) -> Float[Tensor, "b n d"]:
        """Attend."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        hidden, future = layout.hide(), None
        if self.is_fused and hidden is None:
            return self.join_heads(self._fuse(q, k, v, None, is_causal=self.config.causal))
        if self.config.causal:
            later = layout.positions > layout.positions.unsqueeze(-1)
            future = later.float() * HIDDEN_SCORE
        if hidden is not None:
            hidden = hidden.unsqueeze(1).unsqueeze(1)
            if self.is_fused:
                # TensorRT takes a mask or is_causal, onnxruntime a mask with a row for each query.
                rows = (layout.positions * 0).unsqueeze(-1) if future is None else future
                return self.join_heads(self._fuse(q, k, v, hidden + rows))
        return self.join_heads(self.precision.multiply(self.weigh(q, k, hidden, future), v, "mixed"))

    def mix(
        self,
        q: Float[Tensor, "b h i s"],
        k: Float[Tensor, "b h j s"],
        v: Float[Tensor, "b h j s"],
        hidden: Float[Tensor, "b 1 i j"],
        *,
        is_written_out: bool = False,
    ) -> Float[Tensor, "b n d"]:
        """Attend from queries to other keys than their own, given what is added to the scores."""
        if self.is_fused and not is_written_out:
            return self.join_heads(self._fuse(q, k, v, hidden))
        return self.join_heads(self.precision.multiply(self.weigh(q, k, hidden), v, "mixed"))

    def join_heads(self, mixed: Float[Tensor, "b h n s"]) -> Float[Tensor, "b n d"]:
        """Return the tokens, with the heads side by side."""
        return reshape(mixed.transpose(1, 2), [0, -1, self.config.dim])

    def _fuse(
        self,
        q: Float[Tensor, "b h i s"],
        k: Float[Tensor, "b h j s"],
        v: Float[Tensor, "b h j s"],
        hidden: Float[Tensor, "b 1 i j"] | None,
        *,
        is_causal: bool = False,
    ) -> Float[Tensor, "b h i s"]:
        """Attend by one operator, which is fp32 where any value within it is an island."""
        precision = self.precision
        if any(precision.get_dtype(name) == torch.float32 for name in _VALUES):
            q, k, v = widen(q), widen(k), widen(v)
        elif hidden is not None:
            hidden = hidden.clamp(min=HIDDEN_HALF_SCORE).to(q.dtype)
        return precision.narrow(attend(q, k, v, hidden, is_causal), "mixed")


def _make(layer: MultiheadLayer, precision: Precision) -> LoweredAttention:
    return LoweredFullAttention(layer.config, precision)


def _fuse_attention(lowered: nn.Module) -> None:
    """Make the attention of every layer one operator."""
    for module in lowered.modules():
        if isinstance(module, LoweredFullAttention):
            module.is_fused = True


# Its graphs that carry a state are in ``transformer_state.py``.
TRANSFORMER_FORWARD = replace(describe_lowering(_make), fuse_attention=_fuse_attention)
