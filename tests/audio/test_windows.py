"""How a recording is cut into windows: every sample comes once, from inside of a window, in the speakers' order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flash_export.audio.windows import ContinuedOrder, Samples, Windows, process

if TYPE_CHECKING:
    from collections.abc import Iterator

WINDOWS = Windows(length=8, longest_whole=8, pads_whole=True)  # stride 6, edge 1


def cut(values: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def test_strides_and_edges() -> None:
    assert (WINDOWS.stride, WINDOWS.edge) == (6, 1)
    assert [WINDOWS.find_padded_length(n) for n in (3, 8, 13, 14, 15, 20)] == [8, 14, 14, 14, 24, 20]
    assert [WINDOWS.find_reach(n) for n in (3, 8, 9, 14, 15, 20)] == [8, 14, 13, 13, 19, 19]


@settings(max_examples=200)
@given(num_samples=st.integers(1, 80), block=st.integers(1, 30), whole=st.integers(8, 30), padded=st.booleans())
def test_every_sample_comes_once_and_from_inside_of_a_window(
    num_samples: int, block: int, whole: int, padded: bool
) -> None:
    values = np.arange(1, num_samples + 1, dtype=np.float32)
    windows, seen = Windows(8, whole), []

    def run(samples: np.ndarray) -> np.ndarray:
        seen.append(samples)
        edges = np.zeros_like(samples)  # what is at the edge of a window is marked
        edges[[0, -1]] = 1000
        return np.stack([samples, edges])

    samples = Samples(cut(values, block))
    found = np.concatenate(list(process(samples, windows, run, padded=padded)), axis=1)
    assert samples.total == num_samples
    assert found.shape[1] >= num_samples
    np.testing.assert_array_equal(found[0, :num_samples], values)
    assert not found[0, num_samples:].any()
    if num_samples > whole:
        assert found[1, 0] == 1000
        assert not found[1, 1:].any()
        assert {len(window) for window in seen} == {8}
        if padded:
            assert found.shape[1] >= windows.find_reach(num_samples)
    else:
        assert [len(window) for window in seen] == [num_samples]


def test_memory_does_not_grow_with_the_recording() -> None:
    most = 0

    def blocks() -> Iterator[np.ndarray]:
        for _ in range(1000):
            yield np.zeros(5, dtype=np.float32)

    samples = Samples(blocks())
    for _ in process(samples, WINDOWS, lambda x: x[None]):
        most = max(most, samples.num_kept)
    assert samples.total == 5000
    assert most <= 2 * WINDOWS.length


def test_speakers_keep_their_places() -> None:
    random = np.random.default_rng(0)
    speakers = random.standard_normal((3, 200)).astype(np.float32)
    mixture = np.arange(200, dtype=np.float32)  # tells where a window lies

    def run(samples: np.ndarray) -> np.ndarray:
        start = int(samples[0])
        found = np.pad(speakers, ((0, 0), (0, 50)))[:, start : start + len(samples)]
        return found[random.permutation(3)] + 0.1 * random.standard_normal(found.shape).astype(np.float32)

    windows = Windows(40, 40)
    found = np.concatenate(
        list(process(Samples(cut(mixture, 17)), windows, ContinuedOrder(run, windows.stride))), axis=1
    )[:, :200]
    likeness = found @ speakers.T / np.square(speakers).sum(axis=1)
    assert sorted(likeness.argmax(axis=1)) == [0, 1, 2]
    assert likeness.max(axis=1) == pytest.approx([1, 1, 1], abs=0.1)
