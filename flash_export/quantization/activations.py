"""What the products of a graph are given when it reads data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flash_export.data.batch import Batch
from flash_export.data.sources import cut_piece
from flash_export.exporters.quantization.rounding import ProductSample
from flash_export.interface import BATCH
from flash_export.runtime.ort import OrtRunner

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from flash_export.exporters.quantization.source import SourceGraph

SAMPLED_TOKENS = 512
MAX_RECORDED_BYTES = 1 << 30
FIRST_LENGTH = 256
MAX_FIXED_ROWS = 32
# An attention over few positions averages less, so that a product may be given most there; by length, how many rows.
SHORT_ROWS = {1: 256, 2: 128, 4: 64, 8: 32, 16: 16, 32: 8, 64: 4}


def list_lengths(rows: Batch, longest: int, bytes_a_position: int) -> list[int]:
    """Return the lengths to calibrate at: 256 and its doublings, as far as data, graph and a GiB of memory go."""
    if rows.interface.fixed_len is not None:
        return [rows.seq_len] * min(rows.size, MAX_FIXED_ROWS)
    limit = min(rows.seq_len, longest, MAX_RECORDED_BYTES // bytes_a_position)
    lengths = [max(min(FIRST_LENGTH, limit), rows.interface.min_len)]
    while 2 * lengths[-1] <= limit:
        lengths.append(2 * lengths[-1])
    return lengths


def record_activations(
    source: SourceGraph, path: Path, rows: Batch, seq_lens: Sequence[int], threads: int | None = None
) -> dict[str, ProductSample]:
    """Run the graph as it is, and return what each product was given: samples, and the largest, in short rows too.

    Args:
        source: The graph.
        path: Its file, not quantized.
        rows: The data; each length starts where the last one ended.
        seq_lens: Lengths.
        threads: Threads of one operator.
    """
    values = sorted({product.input_name for product in source.products})
    samples: dict[str, list[np.ndarray]] = {name: [] for name in values}
    largest: dict[str, np.ndarray] = {}
    each = max(SAMPLED_TOKENS // len(seq_lens), 1)
    short = _cut_short(rows, seq_lens[0], source.graph.axes[BATCH].max)
    with OrtRunner(source.graph, path, threads=threads, inner_values=values) as runner:
        for index, piece in enumerate((*_cut(rows, seq_lens), *short)):
            outputs = runner.run(piece.to_inputs(source.graph.inputs))
            for name in values:
                given = outputs[name].reshape(-1, outputs[name].shape[-1])
                peak = np.abs(given).max(axis=0)
                largest[name] = np.maximum(largest.get(name, peak), peak)
                if index < len(seq_lens):
                    chosen = np.linspace(0, len(given) - 1, min(each, len(given))).astype(np.int64)
                    samples[name].append(given[chosen])
    joined = {name: np.concatenate(samples[name]) for name in values}
    return {
        one.name: ProductSample(one.weight, joined[one.input_name], largest[one.input_name]) for one in source.products
    }


def skip_activations(source: SourceGraph) -> dict[str, ProductSample]:
    """Return the products without what they are given, for schemes that need not know it."""
    return {
        one.name: ProductSample(one.weight, np.empty((0, len(one.weight)), np.float32), np.empty(0, np.float32))
        for one in source.products
    }


def _cut(rows: Batch, seq_lens: Sequence[int]) -> Iterator[Batch]:
    """Yield pieces, row by row, each of the next length that has room in the row, or else from the next row on."""
    row = start = 0
    for seq_len in seq_lens:
        if start + seq_len > rows.seq_len:
            row, start = (row + 1) % rows.size, 0
        yield cut_piece(rows, row, start, seq_len)
        start += seq_len


def _cut_short(rows: Batch, shorter_than: int, max_batch: int) -> Iterator[Batch]:
    """Yield batches of short rows, as far as the model takes any."""
    for length, count in SHORT_ROWS.items():
        if rows.interface.min_len <= length < shorter_than:
            pieces = list(_cut(rows, [length] * count))
            for start in range(0, count, max_batch):
                yield Batch.join(pieces[start : start + max_batch])
