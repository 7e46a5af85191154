"""Optimisation profiles: ``MIN:OPT:MAX`` text, such as ``1x1:1x512:4x4096``, to shapes of every graph input.

Each part gives one size for every symbolic axis of the inputs, in the order in which the inputs show them:
``batch x seq`` for the forward graphs, and ``batch x past`` for a ``decode`` whose state grows. All inputs share these
axes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from flash_export.bundle.default_profile import build_profile, derive_profile, get_input_axes
from flash_export.config import DEFAULT_PROFILE_BATCH
from flash_export.errors import ProfileError
from flash_export.interface import PAST

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flash_export.bundle.manifest import AxisRange, GraphSpec, ProfileShapes
    from flash_export.exporters.profile_cuts import ProfileCuts

BATCH_AXIS = "batch"
SEQ_AXIS = "seq"

_EXPORT_OPTIONS = {BATCH_AXIS: "--max-batch", SEQ_AXIS: "--max-seq-len", PAST: "--max-seq-len"}
_PARTS = ("min", "opt", "max")


def parse_profile(text: str, graph: GraphSpec) -> dict[str, ProfileShapes]:
    """Read one profile and check it against the ranges of the graph.

    Args:
        text: ``MIN:OPT:MAX``, each part one size per axis joined by ``x``.
        graph: Contract of the graph that the profile is for.

    Returns:
        The shapes of every input, by name.

    Raises:
        ProfileError: The text is malformed, min > opt or opt > max, or a size is outside the graph's range.
    """
    axes = get_input_axes(graph)
    form = ":".join([_format_axes(axes)] * 3)
    parts = text.strip().split(":")
    if len(parts) != len(_PARTS):
        raise ProfileError(
            f"profile {text}: {len(parts)} part(s) where MIN:OPT:MAX has 3; "
            f"write {form}, such as {_format_example(axes)}"
        )
    minimum, optimum, maximum = (_parse_sizes(text, part, axes) for part in parts)
    for axis, bounds in axes.items():
        sizes = dict(zip(_PARTS, (minimum[axis], optimum[axis], maximum[axis]), strict=True))
        _check_order(text, axis, sizes)
        _check_range(text, axis, sizes, bounds)
    return build_profile(graph, minimum, optimum, maximum)


def derive_profiles(
    graph: GraphSpec, chunk_size: int, *, max_batch: int = DEFAULT_PROFILE_BATCH, cuts: ProfileCuts | None = None
) -> tuple[dict[str, ProfileShapes], ...]:
    """Return the profiles of an engine for which the user wrote out none.

    Without cuts it is one that covers every length the graph promises, tuned for about 512 tokens, a whole number of
    chunks. A large maximum changes neither the build time nor the size of the engine; it is memory at run time that
    grows, with the batch most of all, so the batch is what is capped. All are tuned for one sequence.

    Args:
        graph: Contract of the graph that they are for.
        chunk_size: Units of length of a chunk.
        max_batch: Largest batch, as far as the graph has it.
        cuts: Where one profile ends and the next begins; the first begins at the graph's shortest length.
    """
    if cuts is None or SEQ_AXIS not in get_input_axes(graph):
        return (derive_profile(graph, chunk_size, max_batch=max_batch),)
    starts = (graph.axes[SEQ_AXIS].min, *(end + 1 for end in cuts.ends[:-1]))
    return tuple(
        derive_profile(graph, chunk_size, max_batch=max_batch, lengths=lengths)
        for lengths in zip(starts, cuts.tuned, cuts.ends, strict=True)
    )


def _parse_sizes(text: str, part: str, axes: Mapping[str, AxisRange]) -> dict[str, int]:
    wanted = _format_axes(axes)
    sizes = part.split("x") if part else []
    if len(sizes) != len(axes):
        raise ProfileError(
            f"profile {text}: {part!r} has {len(sizes)} size(s) where the graph has {len(axes)} axes; write {wanted}, "
            f"such as {_format_example(axes)}"
        )
    for axis, size in zip(axes, sizes, strict=True):
        if not re.fullmatch(r"[0-9]{1,1000}", size):
            raise ProfileError(f"profile {text}: {axis} {size!r} is not a whole number; write {wanted} in digits")
        if int(size) == 0:
            raise ProfileError(f"profile {text}: {axis} 0 is an empty axis; use at least 1")
    return {axis: int(size) for axis, size in zip(axes, sizes, strict=True)}


def _check_order(text: str, axis: str, sizes: Mapping[str, int]) -> None:
    for lower, upper in (("min", "opt"), ("opt", "max")):
        if sizes[lower] > sizes[upper]:
            raise ProfileError(
                f"profile {text}: {axis} has {lower} {sizes[lower]} above {upper} {sizes[upper]}; "
                "write MIN:OPT:MAX in rising order"
            )


def _check_range(text: str, axis: str, sizes: Mapping[str, int], bounds: AxisRange) -> None:
    if sizes["max"] > bounds.max:
        option = _EXPORT_OPTIONS.get(axis)
        cure = f"export again with {option} or lower it" if option else "lower it"
        raise ProfileError(f"profile {text}: {axis} {sizes['max']} exceeds the graph's maximum {bounds.max}; {cure}")
    if sizes["min"] < bounds.min:
        raise ProfileError(f"profile {text}: {axis} {sizes['min']} is below the graph's minimum {bounds.min}; raise it")


def _format_axes(axes: Mapping[str, AxisRange]) -> str:
    return "x".join(axis.upper() for axis in axes)


def _format_example(axes: Mapping[str, AxisRange]) -> str:
    """Return a profile that this graph accepts."""
    lowest = "x".join(str(bounds.min) for bounds in axes.values())
    highest = "x".join(str(bounds.max) for bounds in axes.values())
    return f"{lowest}:{lowest}:{highest}"
