"""Cutting lengths into profiles, compared with trying every way of doing it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flash_export.exporters.length_histogram import LengthHistogram, parse_range
from flash_export.exporters.profile_cuts import ProfileCuts, choose_cuts, find_cuts
from flash_export.models.mossformer2 import Mossformer2Config, WaveformFrames
from flash_export.models.token_model import describe_token_model

if TYPE_CHECKING:
    from collections.abc import Iterable

CHUNK = 8
TOKENS = describe_token_model(256, needs_mask=False, is_causal=True, window=CHUNK)
counts = st.dictionaries(st.integers(1, 90), st.integers(1, 1000), min_size=1, max_size=12)


def make_histogram(values: dict[int, int]) -> LengthHistogram:
    lengths = sorted(values)
    shares = np.array([values[length] for length in lengths], float)
    return LengthHistogram(np.array(lengths), shares / shares.sum(), "a test")


def compute_cost(values: dict[int, int], ends: Iterable[int], change_cost: float) -> float:
    """Compute what is minimised from its definition, request by request."""
    ends, total = list(ends), sum(values.values())
    chosen = {length: next(end for end in ends if length <= end) for length in values}
    padding = sum(count * (chosen[length] - length) for length, count in values.items()) / total
    shares = [sum(count for length, count in values.items() if chosen[length] == end) / total for end in ends]
    return padding + change_cost * sum(a * b for i, a in enumerate(shares) for j, b in enumerate(shares) if i != j)


@given(counts, st.integers(1, 4), st.sampled_from([0.0, 0.5, 7.0, 200.0]))
def test_no_other_cuts_cost_less(values: dict[int, int], most: int, change_cost: float) -> None:
    found = find_cuts(make_histogram(values), TOKENS, 90, max_profiles=most, change_cost=change_cost)
    ends = sorted({min(-(-length // CHUNK) * CHUNK, 90) for length in values})
    assert [len(cuts.ends) for cuts in found] == list(range(1, min(most, len(ends)) + 1))
    for number, cuts in enumerate(found, start=1):
        costs = [
            compute_cost(values, (*others, ends[-1]), change_cost)
            for others in itertools.combinations(ends[:-1], number - 1)
        ]
        assert cuts.get_cost(change_cost) == pytest.approx(min(costs), rel=1e-9, abs=1e-9)
        assert cuts.get_cost(change_cost) == pytest.approx(compute_cost(values, cuts.ends, change_cost))
        assert sum(cuts.shares) == pytest.approx(1)
        starts = (1, *(end + 1 for end in cuts.ends))
        for start, tuned, end in zip(starts, cuts.tuned, cuts.ends, strict=False):
            assert start <= tuned <= end
            # Half of the work, and no less, is in requests up to the length that it is tuned for.
            inside = {length: count for length, count in values.items() if start <= length <= end}
            work = sum(length * count for length, count in inside.items())
            upto = sum(length * count for length, count in inside.items() if length <= tuned)
            before = sum(length * count for length, count in inside.items() if length <= tuned - CHUNK)
            assert before * 2 <= work <= upto * 2


def test_cuts_of_samples_end_where_chunks_of_frames_do() -> None:
    frames = WaveformFrames(kernel_size=8, sample_rate=8000)
    config = Mossformer2Config(
        in_channels=8,
        out_channels=8,
        dim=16,
        depth=1,
        hidden_dim=24,
        qk_dim=8,
        chunk_size=8,
        fsmn="dilated",
        frames=frames,
    )
    interface = config.interface
    lengths = range(interface.min_len, 200)
    histogram = make_histogram(dict.fromkeys(lengths, 1))
    for cuts in find_cuts(histogram, interface, 150, max_profiles=5):
        for end in cuts.ends[:-1]:
            # One sample more would be the first frame of another chunk.
            assert interface.count_frames(end) % 8 == 0
            assert interface.count_frames(end + 1) % 8 == 1
        assert cuts.ends[-1] == 150


def test_many_chunks_are_thinned_out_and_cut_evenly() -> None:
    (one, two) = find_cuts(parse_range("1:65536"), TOKENS, 65536, max_profiles=2)
    assert one.padding == pytest.approx(32767.5)
    assert two.ends == (32768, 65536)


def test_no_more_profiles_than_are_worth_it() -> None:
    """Three kinds of requests: the third profile saves much, the fourth cannot."""
    histogram = make_histogram({8: 100, 400: 100, 4000: 100, 4008: 1})
    found = find_cuts(histogram, TOKENS, 5000, max_profiles=8)
    assert choose_cuts(found, histogram).ends == (8, 400, 4008)
    # Where a change costs more than any padding, there is one profile.
    dear = find_cuts(histogram, TOKENS, 5000, max_profiles=8, change_cost=1e6)
    assert choose_cuts(dear, histogram, 1e6).ends == (4008,)
    assert dear[1].get_cost(1e6) > dear[0].get_cost(1e6)


def test_costs_are_padding_and_changes() -> None:
    cuts = ProfileCuts((8, 16), (8, 16), (0.5, 0.5), 3.0, 0.5)
    assert cuts.get_cost(4.0) == 5.0
