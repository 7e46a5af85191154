"""Choosing the next token of each row from its logits.

Order and meaning of the steps are those of Hugging Face transformers 4: repetition penalty, temperature, top-k, top-p.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flash_export.errors import ConfigError, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen, and when a text ends.

    Attributes:
        temperature: Logits are divided by it; 0 takes the most likely token.
        top_k: Draw from this many most likely tokens; 0: from all.
        top_p: Draw from the fewest tokens that together have this probability; 1: from all.
        repetition_penalty: Logits of tokens that are in the text already are divided by it where positive and
            multiplied where negative; 1 changes nothing.
        stop_tokens: A row ends with the first of these that it writes.
        max_tokens: Most tokens that a row writes; 0 reads the prompt and writes nothing.
        seed: Row r draws from the stream of ``seed + r``, whatever the other rows are: alone, with that seed, it
            gives the same text.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop_tokens: tuple[int, ...] = ()
    max_tokens: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature={self.temperature} is not usable; use 0 for greedy choice, or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} is not usable; use more than 0 and at most 1")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ConfigError(f"repetition_penalty={self.repetition_penalty} is not usable; use more than 0")
        for name in ("top_k", "max_tokens", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} is not usable; use a whole number of at least 0")
        if self.stop_tokens and min(self.stop_tokens) < 0:
            raise ConfigError(f"stop_tokens={self.stop_tokens} are not usable; token ids are at least 0")

    def check_vocabulary(self, vocab_size: int) -> None:
        """Check that stop tokens can be written.

        Raises:
            ConfigError: One is outside of the vocabulary.
        """
        if self.stop_tokens and max(self.stop_tokens) >= vocab_size:
            raise ConfigError(f"stop_tokens={self.stop_tokens} are not usable; token ids are 0 to {vocab_size - 1}")


class Sampler:
    """What the choice of the next token depends on besides the logits: tokens seen so far and random streams."""

    def __init__(self, options: SamplingOptions, batch: int, vocab_size: int) -> None:
        """Start the random streams.

        Raises:
            ConfigError: A stop token is outside of the vocabulary.
        """
        options.check_vocabulary(vocab_size)
        self._options = options
        self._streams = [np.random.default_rng(options.seed + row) for row in range(batch)]
        self._seen = np.zeros((batch, vocab_size), dtype=np.bool_)

    def read_prompts(self, prompts: Sequence[Int[np.ndarray, " seq"]]) -> None:
        """Note what each row's text begins with, for the repetition penalty."""
        for row, prompt in enumerate(prompts):
            self._seen[row, prompt] = True

    def choose(
        self, logits: Float[np.ndarray, "rows vocab"], rows: Int[np.ndarray, " rows"]
    ) -> Int[np.ndarray, " rows"]:
        """Return the next token of some of the rows.

        Raises:
            InputError: The logits hold NaN or infinite values.
        """
        draws = np.array([self._streams[row].random() for row in rows])
        tokens = choose_tokens(logits, self._options, seen=self._seen[rows], draws=draws)
        self._seen[rows, tokens] = True
        return tokens


def choose_tokens(
    logits: Float[np.ndarray, "rows vocab"],
    options: SamplingOptions,
    *,
    seen: Bool[np.ndarray, "rows vocab"],
    draws: Float[np.ndarray, " rows"],
) -> Int[np.ndarray, " rows"]:
    """Choose the next token of every row.

    Args:
        logits: Unnormalised log probabilities.
        options: How to choose.
        seen: True for tokens that are in the row's text already.
        draws: One uniform number in [0, 1) a row, the only source of chance.

    Raises:
        InputError: The logits hold NaN or infinite values.
    """
    if not np.isfinite(logits).all():
        raise InputError("logits hold NaN or infinite values; see with 'flash-export validate' what the model computes")
    scores = logits.astype(np.float64)
    if options.repetition_penalty != 1:
        penalised = np.where(scores < 0, scores * options.repetition_penalty, scores / options.repetition_penalty)
        scores = np.where(seen, penalised, scores)
    if options.temperature == 0:
        return scores.argmax(axis=1)
    scores -= scores.max(axis=1, keepdims=True)  # before the division, which a small temperature would overflow
    with np.errstate(over="ignore", under="ignore"):
        scores /= options.temperature
        scores = _keep_top_k(scores, options.top_k)
        probabilities = _keep_top_p(np.exp(scores), options.top_p)
    cumulative = probabilities.cumsum(axis=1)
    return (cumulative > draws[:, None] * cumulative[:, -1:]).argmax(axis=1)


def _keep_top_k(scores: Float[np.ndarray, "rows vocab"], top_k: int) -> Float[np.ndarray, "rows vocab"]:
    """Set all but the ``top_k`` largest, and what equals the last of them, to minus infinity."""
    if not 0 < top_k < scores.shape[1]:
        return scores
    smallest_kept = np.partition(scores, -top_k, axis=1)[:, -top_k, None]
    return np.where(scores < smallest_kept, -np.inf, scores)


def _keep_top_p(weights: Float[np.ndarray, "rows vocab"], top_p: float) -> Float[np.ndarray, "rows vocab"]:
    """Set what lies outside of the fewest tokens that reach ``top_p`` of the sum to 0; the largest always stays."""
    if top_p == 1:
        return weights
    order = weights.argsort(axis=1, kind="stable")
    cumulative = np.take_along_axis(weights, order, axis=1).cumsum(axis=1)
    dropped = cumulative <= (1 - top_p) * cumulative[:, -1:]
    dropped[:, -1] = False
    kept = np.empty_like(dropped)
    np.put_along_axis(kept, order, ~dropped, axis=1)
    return np.where(kept, weights, 0.0)
