"""Prompts, what ``generate`` writes after them, and inputs of models without a state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flash_export.generation.generate import Generator
from flash_export.generation.sampling import SamplingOptions

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle

# Shorter than a chunk of 8, a whole number of them, one token more, and more than one run of prefill takes, of graphs
# whose longest sequence has 200 tokens.
LENGTHS = (3, 16, 17)
LONG = 501
GREEDY = SamplingOptions(max_tokens=40)
INPUTS: dict[str, dict[str, np.ndarray]] = {
    "forward": {"input_ids": np.arange(24).reshape(2, 12)},
    "masked": {
        "input_ids": np.arange(24).reshape(2, 12),
        "attention_mask": (np.arange(12) < [[9], [5]]).astype(np.int64),
    },
    "speakers": {"waveform": np.sin(np.arange(700, dtype=np.float32))[None]},
    "keypoints": {"features": np.sin(np.arange(144, dtype=np.float32)).reshape(2, 6, 4, 3)},
}


def draw_prompts(bundle: Bundle, lengths: tuple[int, ...]) -> list[np.ndarray]:
    """Draw token ids; none is 0, which no argument of a program can hold as a byte."""
    rng = np.random.default_rng(0)
    vocab_size = bundle.manifest.interface.vocab_size
    assert vocab_size is not None
    return [rng.integers(1, vocab_size, length) for length in lengths]


def expect(bundle: Bundle, prompts: list[np.ndarray], options: SamplingOptions) -> list[list[int]]:
    """Return what ``generate`` writes."""
    with Generator.open(bundle, threads=1) as generator:
        return [tokens.tolist() for tokens in generator.generate(prompts, options).tokens]
