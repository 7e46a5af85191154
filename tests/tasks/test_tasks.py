from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from flash_export.data.batch import Batch
from flash_export.data.samples import Sample
from flash_export.data.sources import RandomSource
from flash_export.interface import Bins, Features, Interface, TensorSpec, Waveform
from flash_export.models.token_model import describe_token_model
from flash_export.tasks.base import Comparison, join_comparisons
from flash_export.tasks.keypoints import KeptKeypoints, KeypointsTask
from flash_export.tasks.registry import TASKS, get_task
from flash_export.tasks.signal import MAX_DB, SignalTask, compute_si_sdr, compute_snr
from flash_export.tasks.tokens import TokensTask

BYTES = describe_token_model(256, needs_mask=False, is_causal=True)
SOUND = Interface(
    inputs=(TensorSpec("mixture", "float32", ("batch", "seq"), Waveform(8000)),),
    outputs=(TensorSpec("voice", "float32", ("batch", "seq"), Waveform(8000)),),
    task="signal",
    padding="refused",
)
POSE = Interface(
    inputs=(TensorSpec("features", "float32", ("batch", 3), Features()),),
    outputs=tuple(TensorSpec(f"simcc_{axis}", "float32", ("batch", 2, 40), Bins(2.0)) for axis in "xy"),
    task="keypoints",
    unit="keypoints",
    padding="refused",
    fixed_len=2,
)


def _draw_logits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, 5, 256)).astype(np.float32)


def test_tokens_compare_as_torch_does() -> None:
    expected, actual = _draw_logits(0), _draw_logits(1)
    compared = np.array([[True] * 5, [True, True, False, False, False]])
    found = TokensTask().compare(BYTES, {"logits": expected}, {"logits": actual}, compared)
    wanted, given = (torch.from_numpy(x[compared]).double().log_softmax(-1) for x in (expected, actual))
    divergence = F.kl_div(given, wanted, log_target=True, reduction="batchmean") / math.log(2)
    assert found.count == 7
    assert found.measures["kl_bits"] == pytest.approx(float(divergence), rel=1e-9)
    agreeing = (wanted.argmax(-1) == given.argmax(-1)).double().mean()
    assert found.measures["top1_agreement"] == pytest.approx(float(agreeing))


def test_tokens_score_as_torch_does() -> None:
    logits, target = _draw_logits(0)[:1], np.array([3, 200, 7])
    compared = np.array([[False, True, True, True, False]])
    batch = Batch.full(BYTES, {"input_ids": np.zeros((1, 5), np.int64)})
    score = TokensTask().score(BYTES, {"logits": logits}, Sample(batch, compared, target))
    wanted = F.cross_entropy(torch.from_numpy(logits[0, 1:4]).double(), torch.from_numpy(target), reduction="sum")
    assert score is not None
    assert score.total == pytest.approx(float(wanted) / math.log(2))
    assert score.count == 3
    assert TokensTask().score(BYTES, {"logits": logits}, Sample(batch)) is None


def test_bits_are_per_byte_for_bytes_alone() -> None:
    assert TokensTask().describe_score(BYTES).label == "bits per byte"
    words = describe_token_model(12000, needs_mask=False, is_causal=True)
    assert TokensTask().describe_score(words).label == "bits per token"


def test_the_loss_of_tokens_is_the_largest_of_its_parts() -> None:
    task, rng = TokensTask(), np.random.default_rng(0)
    batch = Batch.full(BYTES, {"input_ids": np.zeros((1, 5), np.int64)})
    samples = [Sample(batch, target=rng.integers(0, 256, 5)) for _ in range(2)]
    logits = [rng.standard_normal((1, 5, 256)) for _ in samples]
    expected = [task.keep(BYTES, {"logits": x}, sample) for x, sample in zip(logits, samples, strict=True)]
    nothing = task.measure_loss(expected, expected, samples)
    assert (nothing.share, nothing.change) == (0.0, 0.0)
    scaled = [task.keep(BYTES, {"logits": 1.5 * x}, sample) for x, sample in zip(logits, samples, strict=True)]
    loss = task.measure_loss(expected, scaled, samples)
    assert loss.measures["variance"] == pytest.approx(0.25, rel=1e-4)  # half of the logits is the error
    assert loss.share == max(
        loss.measures["variance"], loss.measures["kl_bits"] / (loss.reference_score or 1), loss.change or 0
    )
    broken = [np.full_like(x, np.nan) for x in expected]
    assert math.isinf(task.measure_loss(expected, broken, samples).share)


def test_si_sdr_does_not_mind_the_volume() -> None:
    rng = np.random.default_rng(0)
    signal, noise = rng.standard_normal(4000), rng.standard_normal(4000)
    noise -= (noise @ signal) / (signal @ signal) * signal  # so that the ratio is exactly that of the energies
    noisy = signal + 0.1 * noise
    wanted = 10 * math.log10((signal @ signal) / (0.01 * noise @ noise))
    assert compute_si_sdr(signal, 3 * noisy) == pytest.approx(wanted)
    assert compute_snr(signal, noisy) == pytest.approx(wanted)
    assert compute_snr(signal, 3 * noisy) < 0
    assert compute_si_sdr(signal, signal) == MAX_DB
    assert compute_si_sdr(signal, np.zeros(4000)) == -MAX_DB


def test_signals_are_compared_row_by_row() -> None:
    rng = np.random.default_rng(0)
    expected = rng.standard_normal((2, 100))
    actual = expected + np.array([[1e-1], [1e-3]]) * rng.standard_normal((2, 100))
    found = SignalTask().compare(SOUND, {"voice": expected}, {"voice": actual}, np.ones((2, 100), bool))
    rows = [compute_snr(expected[row], actual[row]) for row in range(2)]
    si_sdr = [compute_si_sdr(expected[row], actual[row]) for row in range(2)]
    assert found.measures == pytest.approx({"si_sdr_db": np.mean(si_sdr), "snr_db": np.mean(rows)})
    assert found.count == 2


def test_the_loss_of_a_signal_is_its_share_of_noise() -> None:
    expected = [np.ones(10, np.float32), np.zeros(10, np.float32)]
    found = [np.full(10, 1.1, np.float32), np.zeros(10, np.float32)]
    assert SignalTask().measure_loss(expected, found, []).share == pytest.approx(0.01, rel=1e-5)
    assert math.isinf(SignalTask().measure_loss(expected, [np.full(10, np.nan)], []).share)


def test_keypoints_move_by_pixels() -> None:
    expected = {f"simcc_{axis}": np.zeros((1, 2, 40)) for axis in "xy"}
    actual = {name: values.copy() for name, values in expected.items()}
    for name, bins in (("simcc_x", (10, 20)), ("simcc_y", (4, 30))):
        for keypoint, at in enumerate(bins):
            expected[name][0, keypoint, at] = 1
    for name, bins in (("simcc_x", (11, 26)), ("simcc_y", (4, 38))):  # by half a pixel, and by 3 and 4
        for keypoint, at in enumerate(bins):
            actual[name][0, keypoint, at] = 1
    found = KeypointsTask().compare(POSE, expected, actual, np.ones((1, 2), bool))
    assert found.measures == pytest.approx({"pixel_error": (0.5 + 5) / 2, "within_half_pixel": 0.5})
    assert found.count == 2


def test_the_loss_of_keypoints_is_energy_or_who_moved() -> None:
    task, batch = KeypointsTask(), RandomSource(POSE).draw(1, 2)
    sample = Sample(batch, np.ones((1, 2), bool))

    def keep(first: dict[int, float], second: dict[int, float]) -> KeptKeypoints:
        scores = np.zeros((1, 2, 40))
        for keypoint, peaks in enumerate((first, second)):
            for at, height in peaks.items():
                scores[0, keypoint, at] = height
        return task.keep(POSE, {"simcc_x": scores, "simcc_y": scores}, sample)

    expected = [keep({10: 1.0}, {20: 1.0})]
    higher = task.measure_loss(expected, [keep({10: 1.1}, {20: 1.1})], [sample])
    assert higher.share == pytest.approx(0.01)
    assert higher.measures == {"within_half_pixel": 1}
    assert task.measure_loss(expected, [keep({10: 1.0}, {22: 1.0})], [sample]).measures == {"within_half_pixel": 0.5}
    near_tie = keep({10: 1.0, 30: 0.999}, {20: 1.0})
    swapped = task.measure_loss([near_tie], [keep({10: 0.999, 30: 1.0}, {20: 1.0})], [sample])
    assert swapped.share == 0.5  # where energy would say a millionth
    assert math.isinf(task.measure_loss(expected, [keep({10: math.nan}, {20: 1.0})], [sample]).share)


def test_means_are_joined_by_how_many_predictions_they_are_of() -> None:
    assert join_comparisons([Comparison({"a": 1.0}, 1), Comparison({"a": 4.0}, 2)]) == Comparison({"a": 3.0}, 3)


def test_every_task_states_what_it_measures() -> None:
    for name, task in TASKS.items():
        assert task.name == name
        assert get_task(name) is task
