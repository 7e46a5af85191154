"""Sizes to trace with that give themselves away if one of them is baked into the graph."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.interface import BATCH, PAST, SEQ

if TYPE_CHECKING:
    from torch import nn

    from flash_export.bundle.manifest import GraphSpec
    from flash_export.interface import Interface

MIN_TELLTALE = 11  # above what counts axes: ranks, and the two pads of each axis


@dataclass(frozen=True)
class TracedSizes:
    """Example sizes, and every number that a graph specialised to them would contain.

    Attributes:
        batch: Example batch.
        seq_len: Example length, no multiple of the window.
        telltales: Batch, length, past, number of frames, of those with padding and of windows, less what the model's
            own sizes explain.
        past: Example of the tokens that a growing state has room for.
    """

    batch: int
    seq_len: int
    telltales: frozenset[int]
    past: int = 1


def choose_traced_sizes(lowered: nn.Module, interface: Interface, graph: GraphSpec) -> TracedSizes:
    """Choose a batch and a number of windows that no size in the model explains.

    Args:
        lowered: The module to be traced.
        interface: How sequences become frames, and of how many they are padded to a multiple.
        graph: Contract of the graph; only where its axes are too short for a telling size is a smaller one taken.
    """
    limits = {name: bounds.max for name, bounds in graph.axes.items()}
    fixed_sizes = {size for spec in (*graph.inputs, *graph.outputs) for size in spec.shape if isinstance(size, int)}
    explained = collect_model_sizes(lowered) | fixed_sizes | set(range(MIN_TELLTALE))
    free = (size for size in itertools.count(MIN_TELLTALE) if size not in explained)
    batch, num_windows, past = min(next(free), limits[BATCH]), next(free), min(next(free), limits.get(PAST, 1))
    fixed = {bounds.max for bounds in graph.axes.values() if bounds.min == bounds.max}
    window = interface.window
    seq_len = interface.find_length((num_windows - 1) * window + (window + 1) // 2)
    if limits.get(SEQ, window + 1) <= window:
        seq_len = max(next(free), graph.axes[SEQ].min)  # of a block that is no longer than a chunk
    seq_len = min(seq_len, limits.get(SEQ, 1))
    num_frames = interface.count_frames(seq_len)
    num_windows = -(-num_frames // window)
    telltales = {batch}
    if any(SEQ in spec.shape for spec in graph.inputs):
        telltales |= {seq_len, num_frames, num_windows * window, num_windows}
    if PAST in limits:
        telltales.add(past)
    telltales -= explained | fixed
    return TracedSizes(batch, seq_len, frozenset(telltales), past)


def collect_model_sizes(lowered: nn.Module) -> set[int]:
    """Return the sizes of all tensors, and what splits and joins make of them: halves, sums and differences."""
    sizes = {size for tensor in lowered.state_dict().values() for size in tensor.shape}
    sizes.update(width for module in lowered.modules() for width in getattr(module, "widths", ()))  # of their splits
    pairs = list(itertools.product(sizes, repeat=2))
    return (
        sizes
        | {half for size in sizes for half in (size // 2, size - size // 2)}
        | {left + right for left, right in pairs}
        | {abs(left - right) for left, right in pairs}
    )
