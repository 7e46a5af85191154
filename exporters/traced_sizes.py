"""Sizes to trace with that give themselves away if one of them is baked into the graph."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flash_export.config import ExportOptions
    from flash_export.models.base import ModelConfig

PRIMES = (11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113)


@dataclass(frozen=True)
class TracedSizes:
    """Example sizes, and every number that a graph specialised to them would contain.

    Attributes:
        batch: Example batch.
        seq_len: Example length, no multiple of the chunk.
        telltales: Batch, length, padded length and number of chunks, less those that the model's own sizes explain.
    """

    batch: int
    seq_len: int
    telltales: frozenset[int]


def choose_traced_sizes(config: ModelConfig, options: ExportOptions) -> TracedSizes:
    """Choose a prime batch and a prime number of chunks that occur nowhere in the config.

    Only where the declared maxima are too small for that are they used instead.
    """
    numbers = {value for value in dataclasses.asdict(config).values() if type(value) is int}
    explained = {factor * value for value in numbers for factor in (1, 2)}
    batch, num_chunks = [prime for prime in PRIMES if prime not in explained][:2]
    batch = min(batch, options.max_batch)
    seq_len = min((num_chunks - 1) * config.window + (config.window + 1) // 2, options.max_seq_len)
    num_chunks = -(-seq_len // config.window)
    candidates = {batch, seq_len, num_chunks * config.window, num_chunks}
    return TracedSizes(
        batch, seq_len, frozenset(size for size in candidates - explained if size > max(PRIMES[0] - 1, 4))
    )
