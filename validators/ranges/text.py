"""The text that a model is measured on: the bundle's own, or random tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flash_export.validators.heldout import Heldout

if TYPE_CHECKING:
    from jaxtyping import Int

    from flash_export.bundle import Bundle

HELDOUT = "held-out text"
RANDOM = "random tokens"


@dataclass(frozen=True)
class Text:
    """Tokens to cut windows from.

    Attributes:
        source: ``held-out text`` or ``random tokens``.
        tokens: All of them, as the model sees them; None: as many as are asked for are drawn.
        vocab_size: Number of tokens to draw from.
    """

    source: str
    tokens: np.ndarray | None
    vocab_size: int

    @classmethod
    def load(cls, bundle: Bundle, vocab_size: int, *, random: bool) -> Text:
        """Read the bundle's held-out text; random tokens if it has none or they are asked for."""
        heldout = None if random else Heldout.load(bundle)
        if heldout is None:
            return cls(RANDOM, None, vocab_size)
        return cls(HELDOUT, heldout.inputs.reshape(-1), vocab_size)

    def count_windows(self, seq_len: int, wanted: int) -> int:
        """Return how many windows of a length there are, up to a wanted number."""
        return wanted if self.tokens is None else min(wanted, len(self.tokens) // seq_len)

    def cut_windows(self, seq_len: int, count: int) -> Int[np.ndarray, "count seq_len"]:
        """Return windows that follow each other."""
        if self.tokens is None:
            return np.random.default_rng([seq_len, count]).integers(
                0, self.vocab_size, (count, seq_len), dtype=np.int64
            )
        return self.tokens[: count * seq_len].reshape(count, seq_len)
