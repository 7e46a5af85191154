"""The held-out text of a bundle or checkpoint, cut into the windows that all backends are asked about.

The folder of a byte-level language model may bring ``heldout.txt``, and ``heldout.json``, which says how the model
was trained to predict it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from flash_export.bundle import HELDOUT_FILE, HELDOUT_TEXT_FILE
from flash_export.errors import BundleError
from flash_export.reading import read_bytes, read_record

if TYPE_CHECKING:
    from pathlib import Path

MAX_TEXT_BYTES = 1 << 30
_MEND = "mend it, or remove it, and export again"


@dataclass(frozen=True)
class HeldoutSettings:
    """``heldout.json``: how a model was trained to predict the text beside it.

    Attributes:
        objective: ``causal``: every byte from those before it; ``masked``: hidden bytes from all others.
        tokenizer: Tokens are the bytes of the text.
        seq_len: Bytes in a window.
        seed: Of masked models: decides which bytes are hidden.
        mask_token_id: Of masked models: the token that stands for a hidden byte.
        mask_fraction: Of masked models: the share of bytes that are hidden.
    """

    objective: Literal["causal", "masked"]
    tokenizer: Literal["bytes"]
    seq_len: int
    seed: int = 0
    mask_token_id: int | None = None
    mask_fraction: float | None = None

    @property
    def mask(self) -> tuple[int, float]:
        """Token and share of masked models."""
        if self.mask_token_id is None or self.mask_token_id < 0:
            raise ValueError(f"mask_token_id is {self.mask_token_id}, wanted the id of a token")
        if self.mask_fraction is None or not 0 < self.mask_fraction <= 1:
            raise ValueError(f"mask_fraction is {self.mask_fraction}, wanted a share above 0 and up to 1")
        return self.mask_token_id, self.mask_fraction

    def __post_init__(self) -> None:
        """Check that windows can be cut and bytes be hidden."""
        if self.seq_len < 2:
            raise ValueError(f"seq_len is {self.seq_len}, wanted 2 or more")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, wanted 0 or more")
        if self.objective == "masked":
            _ = self.mask


@dataclass(frozen=True)
class Heldout:
    """Windows of held-out text and what is predicted in them.

    Attributes:
        tokens: Bytes of the text, ``(windows, seq)``.
        inputs: What the model sees: the same, or with some bytes replaced by the mask token.
        targets: Bool ``(windows, seq)``: which bytes are predicted.
        causal: Whether a byte is predicted by the position before it, or by its own.
    """

    tokens: np.ndarray
    inputs: np.ndarray
    targets: np.ndarray
    causal: bool

    def find_targets(self, window: int) -> np.ndarray:
        """Return the positions of the bytes that are predicted in a window."""
        return np.flatnonzero(self.targets[window])

    def find_predictors(self, window: int) -> np.ndarray:
        """Return the positions whose logits predict them, in the same order."""
        return self.find_targets(window) - int(self.causal)

    @classmethod
    def load(cls, folder: Path) -> Heldout | None:
        """Read the held-out text of a bundle or checkpoint; None when it has none.

        Raises:
            BundleError: Its description is damaged, or the text is shorter than one window.
        """
        path = folder / HELDOUT_FILE
        if not path.exists():
            return None
        settings = read_record(path, HeldoutSettings, BundleError, _MEND)
        text = read_bytes(folder / HELDOUT_TEXT_FILE, BundleError, _MEND, max_bytes=MAX_TEXT_BYTES)
        try:
            return _cut_windows(text, settings)
        except ValueError as error:
            raise BundleError(f"{path} cannot be used ({error}); {_MEND}") from error


def _cut_windows(text: bytes, settings: HeldoutSettings) -> Heldout:
    seq_len, windows = settings.seq_len, len(text) // settings.seq_len
    if windows < 1:
        raise ValueError(f"{len(text)} bytes of text do not fill one window of seq_len={seq_len}")
    tokens = np.frombuffer(text, dtype=np.uint8)[: windows * seq_len].reshape(windows, seq_len).astype(np.int64)
    if settings.objective == "causal":
        targets = np.ones(tokens.shape, dtype=bool)
        targets[:, 0] = False
        return Heldout(tokens, tokens, targets, causal=True)
    mask_token_id, mask_fraction = settings.mask
    targets = np.random.default_rng(settings.seed).random(tokens.shape) < mask_fraction
    if not targets.any():
        raise ValueError(f"mask_fraction={mask_fraction} hides no byte of {tokens.size}")
    return Heldout(tokens, np.where(targets, mask_token_id, tokens), targets, causal=False)
