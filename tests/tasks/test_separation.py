"""Several waveforms are scored in the order that fits best, each by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flash_export.data.batch import Batch
from flash_export.data.samples import Sample
from flash_export.models.mossformer2 import Mossformer2Config, WaveformFrames
from flash_export.tasks.registry import get_task
from flash_export.tasks.signal import compute_separation, compute_si_sdr

FRAMES = WaveformFrames(kernel_size=4, sample_rate=8000)
SIZES: dict[str, Any] = {"in_channels": 4, "dim": 4, "depth": 1, "hidden_dim": 8, "out_channels": 4}


def test_no_order_is_the_right_one() -> None:
    random = np.random.default_rng(0)
    wanted = random.standard_normal((3, 500))
    found = wanted[[2, 0, 1]] * [[0.5], [2.0], [1.0]] + 0.1 * random.standard_normal((3, 500))
    ratios = [compute_si_sdr(wanted[one], found[index]) for index, one in enumerate((2, 0, 1))]
    assert compute_separation(wanted, found) == pytest.approx(np.mean(ratios))
    assert 10 < np.mean(ratios) < 30


def test_score_is_of_each_source_in_the_better_order() -> None:
    interface = Mossformer2Config(**SIZES, fsmn="dilated", frames=FRAMES).interface
    random = np.random.default_rng(1)
    sources = random.standard_normal((2, 100)).astype(np.float32)
    batch = Batch.full(interface, {"waveform": sources.sum(axis=0, keepdims=True)})
    sample = Sample(batch, target=sources[None])
    found = sources[::-1] + 0.01 * random.standard_normal((2, 100))
    score = get_task("signal").score(interface, {"sources": found[None]}, sample)
    assert score is not None
    assert score.mean == pytest.approx(40, abs=1)
    assert "in the order that fits best" in get_task("signal").describe_score(interface).meaning
