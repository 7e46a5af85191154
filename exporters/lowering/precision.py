"""Which values of a lowered model are fp32 and which are half: every place where that is decided asks here.

A lowered model in half precision narrows each value by name. A name that is an *island* is computed and kept in fp32.
What is fp32 in every model (angles, norms, sums that are no products) asks no one: it is never narrowed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from torch import Tensor

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Stands for the values of all blocks and the two around them.
ALL = "*"


@dataclass(frozen=True)
class Precision:
    """The precision of a lowered model, or of one of its blocks.

    Attributes:
        name: ``fp32``, ``fp16`` or ``bf16``.
        islands: Values that are computed and kept in fp32, such as ``layers.3.kv``; ``*`` for every value.
        watch: Shown every value that would be half. All is then computed in fp32, in the terms of the half graph.
        scope: Prefix of the names, such as ``layers.3.``.
    """

    name: str = "fp32"
    islands: frozenset[str] = frozenset()
    watch: Callable[[str, Tensor], None] | None = None
    scope: str = ""

    @property
    def is_half(self) -> bool:
        """Whether the graph is half at all; a watched one is, in its terms."""
        return self.name != "fp32"

    @property
    def dtype(self) -> torch.dtype:
        """What is not an island has this dtype."""
        return DTYPES[self.name] if self.watch is None else torch.float32

    def enter_block(self, index: int) -> Precision:
        """Return the precision of a block."""
        return replace(self, scope=f"layers.{index}.")

    def get_dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a value."""
        is_island = ALL in self.islands or f"{self.scope}{name}" in self.islands
        return torch.float32 if is_island else self.dtype

    def get_cache_dtype(self, name: str) -> str:
        """Return the numpy name of the dtype in which a value is carried from run to run.

        numpy, safetensors' numpy side and onnxruntime's Python interface have no bfloat16, so that it travels as fp32.
        """
        return "float16" if self.get_dtype(name) == torch.float16 else "float32"

    def narrow(self, x: Float[Tensor, ...], name: str) -> Float[Tensor, ...]:
        """Return a value in its dtype; in fp32 models, itself."""
        if self.watch is not None:
            self.watch(f"{self.scope}{name}", x)
        dtype = self.get_dtype(name)
        return x if x.dtype == dtype else x.to(dtype)

    def multiply(self, left: Float[Tensor, ...], right: Float[Tensor, ...], name: str) -> Float[Tensor, ...]:
        """Return a matrix product; see :meth:`combine`."""
        return self.combine(torch.matmul, left, right, name)

    def combine(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        left: Float[Tensor, ...],
        right: Float[Tensor, ...],
        name: str,
    ) -> Float[Tensor, ...]:
        """Return a function of two values in its dtype, computed in fp32 where it or one of them is an island."""
        dtype = self.get_dtype(name)
        if left.dtype != dtype or right.dtype != dtype:
            left, right = widen(left), widen(right)
        return self.narrow(function(left, right), name)


FP32 = Precision()


def widen(x: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Return x in fp32; itself if it is that already, so that fp32 graphs have no Cast."""
    return x if x.dtype == torch.float32 else x.float()
