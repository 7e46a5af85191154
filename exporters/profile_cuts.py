"""Where to cut the range of lengths into optimisation profiles, given how often each length is asked for.

Profiles end where chunks do. A request counts as if it was padded to the end of its profile, as a server pads requests
of one profile that it puts into one batch, and as a CUDA graph of one shape needs it; alone, a request runs at its own
length, with what is tuned to the profile's. What is minimised is

    sum over requests of (end of its profile - its length), plus cost of a change * share of requests that need one

where consecutive requests are independent of each other, so that a change comes with probability 1 - sum of q**2 over
the shares q of the profiles. Both are sums over profiles: dynamic programming over their ends finds the minimum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from flash_export.exporters.length_histogram import LengthHistogram
    from flash_export.interface import Interface

# A further profile is worth its build time and memory if it saves this share of the work, the mean length.
MIN_SAVING = 0.05
_MAX_ENDS = 2048  # more possible ends than this are thinned out evenly: the search takes their number squared


@dataclass(frozen=True)
class ProfileCuts:
    """Profiles for a histogram, and what they cost.

    Attributes:
        ends: Longest length of each profile, rising.
        tuned: Length to tune each for: half of its work, the sum of lengths, is in requests up to there.
        shares: Share of requests that each profile gets.
        padding: Expected padding of a request, in units of length.
        changes: Share of requests that need another profile than the one before.
    """

    ends: tuple[int, ...]
    tuned: tuple[int, ...]
    shares: tuple[float, ...]
    padding: float
    changes: float

    def get_cost(self, change_cost: float) -> float:
        """Return what is minimised, in units of length, where a change costs so many."""
        return self.padding + change_cost * self.changes


def find_cuts(
    histogram: LengthHistogram, interface: Interface, longest: int, *, max_profiles: int, change_cost: float = 0.0
) -> list[ProfileCuts]:
    """Return the best cuts into 1, 2, ... profiles.

    Args:
        histogram: How often each length is asked for.
        interface: Says where chunks end.
        longest: Longest length of the graph, where the last chunk ends in any case.
        max_profiles: Most profiles to try; fewer are returned where there are fewer chunks.
        change_cost: What a change of profile costs, in units of length.
    """
    ends, shares, lengths = _gather_ends(histogram, interface, longest)
    # Sums over the requests up to each end: their share, and share times length.
    share_sums, length_sums = (np.concatenate(([0.0], np.cumsum(x))) for x in (shares, lengths))
    found, best, choices = [], None, []
    for _ in range(min(max_profiles, len(ends))):
        best, choice = _add_profile(best, ends, share_sums, length_sums, change_cost)
        choices.append(choice)
        found.append(_read_cuts(choices, ends, share_sums, length_sums))
    return found


def choose_cuts(found: list[ProfileCuts], histogram: LengthHistogram, change_cost: float = 0.0) -> ProfileCuts:
    """Return the fewest profiles of which none more would save a twentieth of the mean length."""
    least = MIN_SAVING * histogram.mean
    costs = [cuts.get_cost(change_cost) for cuts in found]
    for index, cuts in enumerate(found):
        if costs[index] - min(costs[index:]) < least:
            return cuts
    return found[-1]


def _gather_ends(
    histogram: LengthHistogram, interface: Interface, longest: int
) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Return the possible ends, and of the requests up to each: their share, and share times length."""
    # In a chunk there are as many frames as fit; what is left over at the end of a sequence is part of its length.
    chunk, first_end = interface.chunk_size, interface.find_length(interface.chunk_frames) + interface.frame_hop - 1
    num_more = np.maximum(-(-(histogram.lengths - first_end) // chunk), 0)
    thinned = -(-int(num_more[-1] - num_more[0] + 1) // _MAX_ENDS)
    num_more = -(-(num_more + 1) // thinned) * thinned - 1
    ends = np.minimum(first_end + num_more * chunk, longest)
    unique, first = np.unique(ends, return_index=True)
    shares, lengths = (np.add.reduceat(x, first) for x in (histogram.shares, histogram.shares * histogram.lengths))
    return unique, shares, lengths


def _add_profile(
    best: Float[np.ndarray, " m"] | None,
    ends: Int[np.ndarray, " m"],
    share_sums: Float[np.ndarray, " m+1"],
    length_sums: Float[np.ndarray, " m+1"],
    change_cost: float,
) -> tuple[Float[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """Return the cost of the first ends with one profile more, and with how many ends of the others it does that."""
    num_ends = len(ends)
    before = np.full(num_ends + 1, np.inf)
    if best is None:
        before[0] = 0.0
    else:
        before[1:] = best
    costs, choice = np.empty(num_ends), np.empty(num_ends, np.int64)
    for index, end in enumerate(ends):
        share = share_sums[index + 1] - share_sums[: index + 1]
        padding = end * share - (length_sums[index + 1] - length_sums[: index + 1])
        total = before[: index + 1] + padding + change_cost * share * (1 - share)
        choice[index] = np.argmin(total)
        costs[index] = total[choice[index]]
    return costs, choice


def _read_cuts(
    choices: list[Int[np.ndarray, " m"]],
    ends: Int[np.ndarray, " m"],
    share_sums: Float[np.ndarray, " m+1"],
    length_sums: Float[np.ndarray, " m+1"],
) -> ProfileCuts:
    """Follow the choices back from the last end."""
    stop, stops = len(ends), []
    for choice in reversed(choices):
        stops.append(stop)
        stop = int(choice[stop - 1])
    stops = [0, *reversed(stops)]
    shares, halves = np.diff(share_sums[stops]), (length_sums[stops[:-1]] + length_sums[stops[1:]]) / 2
    chosen, tuned = ends[np.array(stops[1:]) - 1], ends[np.searchsorted(length_sums[1:], halves)]
    padding = float(chosen @ shares - length_sums[-1])
    return ProfileCuts(
        tuple(chosen.tolist()), tuple(tuned.tolist()), tuple(shares.tolist()), padding, float(1 - shares @ shares)
    )
