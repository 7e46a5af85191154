"""What the graphs of a causal ``flash`` model carry from token to token, told by what the model computes for each.

This is the contract of the state in code: after ``position`` tokens, slot j of a cache belongs to the last token whose
number leaves j when divided by the chunk, and the sum holds all tokens that have no slot. What a graph makes of it may
differ in one way: tokens of closed chunks may be in their slots or in the sum, since both are weighed alike.

Axes: b batch, n token, c slot, d model, s query/key, e hidden, w any width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flash_export.probes import Quantity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float, Int

KV, QUAD_K, LIN_K, V, SHIFT = "state_kv", "state_quad_k", "state_lin_k", "state_v", "state_shift"
_QUANTITIES = {
    SHIFT: Quantity("carried half token", "slots"),
    QUAD_K: Quantity("carried quadratic keys", "slots"),
    LIN_K: Quantity("carried linear keys", "slots"),
    V: Quantity("carried values", "slots"),
    KV: Quantity("carried key-value sum", "sums"),
    "mixed": Quantity("both branches together"),
}
# Which quantity of a token its slot has.
_CACHED = {QUAD_K: "quad_k", LIN_K: "lin_k", V: "value"}


@dataclass(frozen=True)
class FlashState:
    """The state of a model with these quantities; see :class:`CarriedState`.

    Attributes:
        computed: What the model computes, the output of a block last.
        chunk_size: Slots of a cache.
        shift_tokens: Whether half a token is carried.
    """

    computed: Mapping[str, Quantity]
    chunk_size: int
    shift_tokens: bool

    @property
    def quantities(self) -> dict[str, Quantity]:
        """What the model computes, what is carried of it, and the sum of the branches."""
        carried = {name: one for name, one in _QUANTITIES.items() if name != SHIFT or self.shift_tokens}
        *before, last = self.computed
        return {**{name: self.computed[name] for name in before}, **carried, last: self.computed[last]}

    def complete(self, tokens: Mapping[str, Float[np.ndarray, "b n w"]]) -> dict[str, np.ndarray]:
        """Add the sum of the branches, which decode and extend do not compute one by one."""
        return {**tokens, "mixed": tokens["quadratic"] + tokens["linear"]}

    def derive(
        self, tokens: Mapping[str, Float[np.ndarray, "b n w"]], position: Int[np.ndarray, " b"]
    ) -> dict[str, np.ndarray]:
        """Return caches ``(b, c, w)``, the sum ``(b, s, e)`` and the half token ``(b, d / 2)``."""
        rows, slots, ends = np.arange(len(position)), np.arange(self.chunk_size), position[:, None]
        last = ends - 1 - (ends - 1 - slots) % self.chunk_size  # (b, c)
        is_there = (last >= 0)[..., None]
        state = {
            name: np.where(is_there, tokens[quantity][rows[:, None], last], 0.0) for name, quantity in _CACHED.items()
        }
        is_summed = np.arange(tokens["lin_k"].shape[1]) < ends - self.chunk_size
        state[KV] = _sum_products(tokens["lin_k"], tokens["value"], is_summed)
        if self.shift_tokens:  # the first half of a token's channels comes from the token before
            normed = tokens["normed"]
            state[SHIFT] = normed[rows, position, : normed.shape[-1] // 2]
        return state

    def settle(self, state: Mapping[str, np.ndarray], position: Int[np.ndarray, " b"]) -> dict[str, np.ndarray]:
        """Move what is of closed chunks into the sum, ``(b, 1, s, e)``; the half token becomes ``(b, 1, d / 2)``."""
        is_open = np.arange(self.chunk_size) < (position % self.chunk_size)[:, None]
        settled = {name: np.where(is_open[..., None], state[name], 0.0) for name in _CACHED}
        settled[KV] = (state[KV] + _sum_products(state[LIN_K], state[V], ~is_open))[:, None]
        return settled | ({SHIFT: state[SHIFT][:, None]} if self.shift_tokens else {})


def _sum_products(
    keys: Float[np.ndarray, "b n s"], values: Float[np.ndarray, "b n e"], is_taken: np.ndarray
) -> Float[np.ndarray, "b s e"]:
    return keys.swapaxes(1, 2) @ (values * is_taken[..., None])
