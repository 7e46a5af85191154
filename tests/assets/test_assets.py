"""The two trained checkpoints in the package are what their papers say they are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import flash_export
from flash_export.models.flash import FlashConfig, FlashModel

if TYPE_CHECKING:
    from collections.abc import Iterator

ASSETS = Path(flash_export.__file__).parent / "assets"
OBJECTIVES = ["causal", "masked"]
MAX_TOTAL_BYTES = 10_500_000
MAX_BITS_PER_BYTE = {"causal": 1.6, "masked": 1.1}
HELDOUT: dict[str, dict[str, Any]] = {
    "causal": {"objective": "causal", "mask_token_id": None, "mask_fraction": None},
    "masked": {"objective": "masked", "mask_token_id": 256, "mask_fraction": 0.15},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small run no faster on two threads, and far slower where the other core is taken."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def read_json(objective: str, name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((ASSETS / f"byte-{objective}" / name).read_text(encoding="utf-8"))
    return values


def load_asset(objective: str) -> FlashModel:
    model = FlashModel(FlashConfig.from_dict(read_json(objective, "config.json")))
    model.load_state_dict(load_file(ASSETS / f"byte-{objective}" / "model.safetensors"), strict=True)
    return model.eval()


def read_heldout(objective: str) -> np.ndarray:
    text = np.frombuffer((ASSETS / f"byte-{objective}" / "heldout.txt").read_bytes(), dtype=np.uint8)
    return text[: len(text) // 1024 * 1024].reshape(-1, 1024).astype(np.int64)


def measure_bits(model: FlashModel, inputs: np.ndarray, targets: np.ndarray, counted: np.ndarray) -> float:
    """Written apart from the example's own measurement, so that one mistake cannot hide in both."""
    bits = []
    for window, target, count in zip(inputs, targets, counted, strict=True):
        with torch.no_grad():
            logits = model(torch.from_numpy(window)[None])[0].double().numpy()
        top = logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
        nats = log_sum - logits[np.arange(len(target)), target]
        bits.append(nats[count] / math.log(2))
    return float(np.concatenate(bits).mean())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_bits_per_byte_are_the_stated_ones(objective: str) -> None:
    model, windows = load_asset(objective), read_heldout(objective)
    if objective == "causal":
        inputs, targets = windows, np.roll(windows, -1, axis=1)
        counted = np.broadcast_to(np.arange(1024) < 1023, windows.shape)
    else:
        counted = np.random.default_rng(0).random(windows.shape) < 0.15
        inputs, targets = np.where(counted, 256, windows), windows

    bits = measure_bits(model, inputs, targets, counted)

    assert bits == pytest.approx(read_json(objective, "training.json")["heldout_bits_per_byte"], abs=1e-3)
    assert bits < MAX_BITS_PER_BYTE[objective]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_parameters_are_half_precision_and_buffers_are_not(objective: str) -> None:
    tensors = load_file(ASSETS / f"byte-{objective}" / "model.safetensors")
    parameters = dict(load_asset(objective).named_parameters())
    assert parameters.keys() < tensors.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == (torch.float16 if name in parameters else torch.float32), name
        assert tensor.isfinite().all(), name
    stated = read_json(objective, "training.json")["parameters"]
    assert sum(parameter.numel() for parameter in parameters.values()) == stated
    assert 1_000_000 <= stated <= 2_000_000


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_heldout_is_described_for_the_validators(objective: str) -> None:
    expected = {**HELDOUT[objective], "tokenizer": "bytes", "seq_len": 1024, "seed": 0}
    assert read_json(objective, "heldout.json") == expected
    text = (ASSETS / f"byte-{objective}" / "heldout.txt").read_text(encoding="utf-8")
    assert 60_000 < len(text.encode("utf-8")) < 70_000


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("seq_len", [1, 127, 4096])
def test_logits_fit_half_precision_at_lengths_beyond_training(objective: str, seq_len: int) -> None:
    text = read_heldout(objective).reshape(-1)[:seq_len]
    with torch.no_grad():
        logits = load_asset(objective)(torch.from_numpy(text)[None])
    assert logits.shape == (1, seq_len, 256 if objective == "causal" else 257)
    assert logits.isfinite().all()
    assert logits.abs().max() < 1000


def test_the_causal_model_does_not_see_the_future() -> None:
    model, text = load_asset("causal"), torch.from_numpy(read_heldout("causal")[0])
    changed = text.clone()
    changed[700:] = ord("?")
    with torch.no_grad():
        expected, actual = model(torch.stack((text, changed)))
    torch.testing.assert_close(actual[:700], expected[:700])
    assert not torch.allclose(actual[700:], expected[700:])


def test_both_checkpoints_are_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < MAX_TOTAL_BYTES
