"""The trained separator in the package is what its paper says it is."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import flash_export
from flash_export.models.checkpoint import load_pretrained

FOLDER = Path(flash_export.__file__).parent / "assets" / "two-speakers"
TRAINING: dict[str, Any] = json.loads((FOLDER / "training.json").read_text())
MAX_BYTES = 3 << 20


def measure_si_sdr(wanted: np.ndarray, found: np.ndarray) -> float:
    """Written apart from the example's own measurement, so that one mistake cannot hide in both."""
    wanted, found = (x.astype(np.float64) - x.mean(dtype=np.float64) for x in (wanted, found))
    explained = wanted * (wanted @ found) / (wanted @ wanted)
    return float(10 * np.log10(np.square(explained).sum() / np.square(found - explained).sum()))


def test_si_sdr_on_held_out_mixtures_is_the_stated_one() -> None:
    model, before, after = load_pretrained(FOLDER), [], []
    with np.load(FOLDER / "heldout.npz") as data:
        waveforms, targets = data["waveform"], data["target"]
    for waveform, sources in zip(waveforms, targets, strict=True):
        found = model(torch.from_numpy(waveform)[None])[0].numpy()
        orders = itertools.permutations(range(len(sources)))
        after.append(max(np.mean([measure_si_sdr(sources[i], found[j]) for i, j in enumerate(o)]) for o in orders))
        before.append(np.mean([measure_si_sdr(source, waveform) for source in sources]))
    gain = float(np.mean(after) - np.mean(before))
    assert float(np.mean(after)) == pytest.approx(TRAINING["heldout_si_sdr_db"], abs=0.05)
    assert gain == pytest.approx(TRAINING["heldout_improvement_db"], abs=0.05)
    assert gain > 4.5


@pytest.mark.parametrize("name", ["two-speakers", "stick-figures"])
def test_it_is_half_precision_and_small_enough_to_ship(name: str) -> None:
    folder = FOLDER.parent / name
    parameters = dict(load_pretrained(folder).named_parameters())
    tensors = load_file(folder / "model.safetensors")
    assert {tensors[name].dtype for name in parameters} == {torch.float16}
    training = json.loads((folder / "training.json").read_text())
    assert sum(parameter.numel() for parameter in parameters.values()) == training["parameters"]
    assert sum(path.stat().st_size for path in folder.iterdir()) < MAX_BYTES


def test_held_out_voices_are_not_those_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    import speech_corpus

    voices = {split: set(speech_corpus.list_voices(split)) for split in ("train", "heldout")}
    assert not voices["train"] & voices["heldout"]
    assert (len(voices["train"]), len(voices["heldout"])) == (TRAINING["voices"], TRAINING["heldout_voices"])
    assert not set(speech_corpus.read_sentences("train")) & set(speech_corpus.read_sentences("heldout"))
