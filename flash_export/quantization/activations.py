"""What the products of a graph are given when it reads text.

Axes: m sampled tokens, k input of a product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flash_export.runtime.ort import OrtRunner
from flash_export.validators.plan import CellInputs, build_graph_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from jaxtyping import Float, Int

    from flash_export.exporters.quantization.trial import TrialGraph

SAMPLED_TOKENS = 512
MAX_RECORDED_BYTES = 1 << 30
FIRST_LENGTH = 256


@dataclass(frozen=True)
class Activations:
    """What one product was given.

    Attributes:
        sample: Some of the tokens, ``(m, k)``.
        max_abs: Largest magnitude of each channel over all tokens, ``(k,)``.
    """

    sample: Float[np.ndarray, "m k"]
    max_abs: Float[np.ndarray, " k"]


def list_lengths(num_tokens: int, longest: int, bytes_a_token: int) -> list[int]:
    """Return the lengths to calibrate at: 256 and its doublings, as far as text, graph and a GiB of memory go."""
    limit = min(num_tokens, longest, MAX_RECORDED_BYTES // bytes_a_token)
    lengths = [min(FIRST_LENGTH, limit)]
    while 2 * lengths[-1] <= limit:
        lengths.append(2 * lengths[-1])
    return lengths


def record_activations(
    trial: TrialGraph, path: Path, tokens: Int[np.ndarray, " n"], seq_lens: Sequence[int], threads: int | None = None
) -> dict[str, Activations]:
    """Run the graph as it is, and return what each product was given.

    Args:
        trial: The graph.
        path: Its file, not quantized.
        tokens: The text; each length starts where the last one ended.
        seq_lens: Lengths.
        threads: Threads of one operator.
    """
    values = sorted({product.input_name for product in trial.products})
    samples: dict[str, list[np.ndarray]] = {name: [] for name in values}
    largest: dict[str, np.ndarray] = {}
    each = max(SAMPLED_TOKENS // len(seq_lens), 1)
    with OrtRunner(trial.graph, path, threads=threads, inner_values=values) as runner:
        for piece in _cut(tokens, seq_lens):
            inputs = CellInputs(piece[None], np.array([len(piece)]))
            outputs = runner.run(build_graph_inputs(trial.graph.inputs, inputs))
            chosen = np.linspace(0, len(piece) - 1, min(each, len(piece))).astype(np.int64)
            for name in values:
                rows = outputs[name].reshape(-1, outputs[name].shape[-1])
                samples[name].append(rows[chosen])
                peak = np.abs(rows).max(axis=0)
                largest[name] = np.maximum(largest.get(name, peak), peak)
    found = {name: Activations(np.concatenate(samples[name]), largest[name]) for name in values}
    return {product.name: found[product.input_name] for product in trial.products}


def _cut(tokens: Int[np.ndarray, " n"], seq_lens: Sequence[int]) -> Iterator[Int[np.ndarray, " seq"]]:
    start = 0
    for seq_len in seq_lens:
        if start + seq_len > len(tokens):
            start = 0
        yield tokens[start : start + seq_len]
        start += seq_len
