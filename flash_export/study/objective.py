"""The two objectives of the byte models, and the one number they are judged by.

Axes: b batch, n sequence, v vocabulary.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

Objective = Literal["causal", "masked"]

MASK_TOKEN_ID = 256
VOCAB_SIZES = {"causal": 256, "masked": MASK_TOKEN_ID + 1}
MASK_FRACTION = 0.15
EVALUATION_SEQ_LEN = 1024
EVALUATION_SEED = 0
IGNORED = -100
MAX_BATCH, MAX_BATCH_TOKENS = 16, 8192


def describe_heldout(objective: Objective, seq_len: int = EVALUATION_SEQ_LEN) -> dict[str, Any]:
    """Return the content of ``heldout.json``: how ``heldout.txt`` is to be evaluated, in windows of which length."""
    masked = objective == "masked"
    return {
        "objective": objective,
        "tokenizer": "bytes",
        "seq_len": seq_len,
        "mask_token_id": MASK_TOKEN_ID if masked else None,
        "mask_fraction": MASK_FRACTION if masked else None,
        "seed": EVALUATION_SEED,
    }


def build_example(
    windows: np.ndarray, objective: Objective, generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn windows of bytes into input ids and targets, both int64 ``(b, n)``.

    A target of ``IGNORED`` counts for nothing: the last position of a causal window, and every byte that
    is not masked.
    """
    tokens = torch.from_numpy(windows.astype(np.int64))
    if objective == "causal":
        return tokens, functional.pad(tokens[:, 1:], (0, 1), value=IGNORED)
    masked = torch.from_numpy(generator.random(windows.shape) < MASK_FRACTION)
    return tokens.masked_fill(masked, MASK_TOKEN_ID), tokens.masked_fill(~masked, IGNORED)


def compute_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy in nats over the targets that count, in fp32."""
    return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


@torch.no_grad()
def measure_bits_per_byte(
    model: Callable[[torch.Tensor], torch.Tensor],
    text: np.ndarray,
    objective: Objective,
    seq_len: int = EVALUATION_SEQ_LEN,
    device: str = "cpu",
) -> float:
    """Return the mean ``-log2 p(true byte)`` over the targets of ``text``.

    The bytes are cut into consecutive windows of ``seq_len``; the last, shorter one is dropped. The masked positions of
    all windows come from one draw, so that the number can be measured again.
    """
    num_windows = len(text) // seq_len
    if not num_windows:
        raise ValueError(f"{len(text)} bytes are less than one window; give at least {seq_len}")
    windows = text[: num_windows * seq_len].reshape(num_windows, seq_len)
    inputs, targets = (
        one.to(device) for one in build_example(windows, objective, np.random.default_rng(EVALUATION_SEED))
    )
    nats, batch = 0.0, max(1, min(MAX_BATCH, MAX_BATCH_TOKENS // seq_len))
    for start in range(0, num_windows, batch):
        part = targets[start : start + batch]
        nats += compute_loss(model(inputs[start : start + batch]), part).item() * int((part != IGNORED).sum())
    return nats / int((targets != IGNORED).sum()) / math.log(2)
