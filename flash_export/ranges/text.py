"""The text that a model is measured on: its own held-out text, or random tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flash_export.heldout import Heldout

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Int

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
    def load(cls, folder: Path | None, vocab_size: int, *, random: bool) -> Text:
        """Read the held-out text of a folder; random tokens if it has none or they are asked for."""
        heldout = None if random or folder is None else Heldout.load(folder)
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
