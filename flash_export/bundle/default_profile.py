"""The optimisation profile of a graph for which none was written out, from the ranges that its manifest declares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.bundle.manifest import AxisRange, GraphSpec, ProfileShapes
from flash_export.config import DEFAULT_PROFILE_BATCH
from flash_export.interface import BATCH, PAST, SEQ

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_OPT_SEQ_LEN = 512


def derive_profile(
    graph: GraphSpec,
    chunk_size: int,
    *,
    max_batch: int = DEFAULT_PROFILE_BATCH,
    lengths: tuple[int, int, int] | None = None,
) -> dict[str, ProfileShapes]:
    """Return a profile that is tuned for one sequence, and takes as many at once as ``max_batch`` and the graph allow.

    Args:
        graph: Contract of the graph that it is for.
        chunk_size: Units of length of a chunk.
        max_batch: Largest batch, as far as the graph has it.
        lengths: Shortest length, the one that is tuned for, and longest; None: every length that the graph promises,
            tuned for about 512 tokens, a whole number of chunks.
    """
    axes = get_input_axes(graph)
    least = {axis: bounds.min for axis, bounds in axes.items()}
    tuned, most = dict(least), {axis: bounds.max for axis, bounds in axes.items()}
    if BATCH in axes:
        bounds = axes[BATCH]
        most[BATCH] = max(min(bounds.max, max_batch), bounds.min)
    if SEQ in axes:
        least[SEQ], tuned[SEQ], most[SEQ] = lengths or _choose_lengths(axes[SEQ], chunk_size)
    if PAST in axes:
        least[PAST], tuned[PAST], most[PAST] = _choose_lengths(axes[PAST], chunk_size)
    return build_profile(graph, least, tuned, most)


def get_input_axes(graph: GraphSpec) -> dict[str, AxisRange]:
    """Return the symbolic axes of the inputs and their ranges, in order of appearance."""
    return {axis: graph.axes[axis] for spec in graph.inputs for axis in spec.shape if isinstance(axis, str)}


def build_profile(
    graph: GraphSpec, minimum: Mapping[str, int], optimum: Mapping[str, int], maximum: Mapping[str, int]
) -> dict[str, ProfileShapes]:
    """Return the shapes of every input, by name, given the sizes of the symbolic axes."""

    def fill(shape: tuple[int | str, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(sizes[size] if isinstance(size, str) else size for size in shape)

    return {
        spec.name: ProfileShapes(fill(spec.shape, minimum), fill(spec.shape, optimum), fill(spec.shape, maximum))
        for spec in graph.inputs
    }


def _choose_lengths(bounds: AxisRange, chunk_size: int) -> tuple[int, int, int]:
    tuned = max(DEFAULT_OPT_SEQ_LEN // chunk_size, 1) * chunk_size
    return bounds.min, min(max(tuned, bounds.min), bounds.max), bounds.max
