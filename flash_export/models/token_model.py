"""What all token models have in common: the names and the interface of their tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.interface import BATCH, SEQ, Interface, Logits, Mask, TensorSpec, TokenIds

if TYPE_CHECKING:
    from flash_export.interface import Padding

TOKENS, MASK, LOGITS = "input_ids", "attention_mask", "logits"


def describe_token_model(
    vocab_size: int,
    *,
    padding: Padding = "exact",
    needs_mask: bool,
    is_causal: bool,
    window: int = 1,
    max_len: int | None = None,
) -> Interface:
    """Return the interface that all token models share: ``input_ids``, ``attention_mask`` and ``logits``."""
    return Interface(
        inputs=(TensorSpec(TOKENS, "int64", (BATCH, SEQ), TokenIds(vocab_size)),),
        outputs=(TensorSpec(LOGITS, "float32", (BATCH, SEQ, vocab_size), Logits()),),
        task="tokens",
        padding=padding,
        mask=TensorSpec(MASK, "int64", (BATCH, SEQ), Mask()),
        needs_mask=needs_mask,
        is_causal=is_causal,
        window=window,
        max_len=max_len,
    )
