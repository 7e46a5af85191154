"""The profiles of an engine: those that were written out, or that follow from how often each length is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.bundle.default_profile import get_input_axes
from flash_export.config import TENSORRT_RTX
from flash_export.errors import ProfileError
from flash_export.exporters.length_histogram import parse_range, read_histogram
from flash_export.exporters.profile import SEQ_AXIS, derive_profiles, parse_profile
from flash_export.exporters.profile_cuts import ProfileCuts, choose_cuts, find_cuts

if TYPE_CHECKING:
    from flash_export.bundle.manifest import GraphSpec, ProfileShapes
    from flash_export.config import BuildOptions, Flavour
    from flash_export.interface import Interface

# How many profiles are looked at where their number is not given.
MAX_AUTO_PROFILES = 8


@dataclass(frozen=True)
class ProfileUse:
    """How lengths were cut into profiles.

    Attributes:
        source: Where it is from how often each length is asked for.
        unit: What the length counts, in the plural.
        mean_length: Mean length of a request.
        candidates: The best cuts into 1, 2, ... profiles.
        chosen: How many profiles were chosen.
        reason: Why that many.
    """

    source: str
    unit: str
    mean_length: float
    candidates: tuple[ProfileCuts, ...]
    chosen: int
    reason: str


def choose_profiles(
    graph: GraphSpec, interface: Interface, options: BuildOptions, flavour: Flavour
) -> tuple[tuple[dict[str, ProfileShapes], ...], ProfileUse | None]:
    """Return the profiles of an engine, and how they were cut, if they were.

    Where their number is not given, TensorRT gets as many as are worth it, and TensorRT-RTX one: each further one makes
    the engine larger by about the size of the weights, and TensorRT-RTX makes kernels for the shapes that it meets in
    any case.

    Raises:
        ProfileError: A profile is malformed or outside the range of the graph, or the graph has no length.
        InputError: What is said of lengths is malformed or outside the range of the graph.
    """
    if options.profiles:
        return tuple(parse_profile(text, graph) for text in options.profiles), None
    use = _cut_lengths(graph, interface, options, flavour)
    cuts = None if use is None else use.candidates[use.chosen - 1]
    return derive_profiles(graph, interface.chunk_size, max_batch=options.max_batch, cuts=cuts), use


def _cut_lengths(graph: GraphSpec, interface: Interface, options: BuildOptions, flavour: Flavour) -> ProfileUse | None:
    if options.length_histogram is not None:
        histogram = read_histogram(options.length_histogram)
    elif options.length_range is not None:
        histogram = parse_range(options.length_range)
    else:
        return None
    if SEQ_AXIS not in get_input_axes(graph):
        raise ProfileError(f"{graph.file} takes one length only, so there is nothing to cut; leave the lengths out")
    axis = graph.axes[SEQ_AXIS]
    histogram.check_range(axis)
    cost = options.change_cost
    most = MAX_AUTO_PROFILES if options.num_profiles is None else options.num_profiles
    found = find_cuts(histogram, interface, axis.max, max_profiles=most, change_cost=cost)
    if options.num_profiles is not None:
        chosen = found[-1]
        reason = "asked for" if len(found) == most else f"{most} asked for, but there are no more chunks"
    elif flavour is TENSORRT_RTX:
        chosen = found[0]
        reason = (
            "TensorRT-RTX makes kernels for the shapes that it meets, and each further profile makes the engine larger "
            "by about the size of the weights"
        )
    else:
        chosen = choose_cuts(found, histogram, cost)
        reason = "none more would save a twentieth of the mean length"
    chosen_number = len(chosen.ends)
    return ProfileUse(histogram.source, interface.unit, histogram.mean, tuple(found), chosen_number, reason)
