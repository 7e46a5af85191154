"""The held-out text of a bundle or checkpoint, cut into the windows that all backends are asked about.

The folder of a byte-level language model may bring ``heldout.txt``, and ``heldout.json``, which says how the model
was trained to predict it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flash_export.bundle import HELDOUT_FILE, HELDOUT_TEXT_FILE
from flash_export.errors import BundleError

if TYPE_CHECKING:
    from pathlib import Path

OBJECTIVES = ("causal", "masked")


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
        if not path.is_file():
            return None
        try:
            settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return _cut_windows((folder / HELDOUT_TEXT_FILE).read_bytes(), settings)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{path} cannot be used ({error}); mend it, or remove it, and export again") from error


def _cut_windows(text: bytes, settings: dict[str, Any]) -> Heldout:
    objective, seq_len = settings["objective"], int(settings["seq_len"])
    if objective not in OBJECTIVES:
        raise ValueError(f"objective={objective!r} is unknown; known are {', '.join(OBJECTIVES)}")
    if settings["tokenizer"] != "bytes":
        raise ValueError(f"tokenizer={settings['tokenizer']!r} is unknown; known is 'bytes'")
    windows = len(text) // seq_len
    if windows < 1 or seq_len < 2:
        raise ValueError(f"{len(text)} bytes of text do not fill one window of seq_len={seq_len}")
    tokens = np.frombuffer(text, dtype=np.uint8)[: windows * seq_len].reshape(windows, seq_len).astype(np.int64)
    if objective == "causal":
        targets = np.ones(tokens.shape, dtype=bool)
        targets[:, 0] = False
        return Heldout(tokens, tokens, targets, causal=True)
    rng = np.random.default_rng(settings["seed"])
    targets = rng.random(tokens.shape) < settings["mask_fraction"]
    if not targets.any():
        raise ValueError(f"mask_fraction={settings['mask_fraction']} hides no byte of {tokens.size}")
    return Heldout(tokens, np.where(targets, settings["mask_token_id"], tokens), targets, causal=False)
