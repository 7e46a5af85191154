"""Speech to learn separation from: the documentation of Python's standard library, spoken by espeak-ng in many voices.

Some voices and some texts are held out: no training mixture has them. What was spoken is kept in a folder, so that a
second run finds it.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import pkgutil
import re
import subprocess
import sys
import warnings
import wave
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Split = Literal["train", "heldout"]
SAMPLE_RATE = 8000
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbclan")
# espeak-ng's variants of a voice: men, women, and some with another timbre.
VARIANTS = (
    *(f"m{index}" for index in range(1, 9)),
    *(f"f{index}" for index in range(1, 6)),
    "croak",
    "klatt2",
    "klatt4",
)
HELDOUT_VARIANTS = ("m3", "m7", "f2", "f5", "klatt4")
_SENTENCE = re.compile(r"[A-Z][a-z][^.!?`_(){}\[\]<>|=*/\\]{40,160}[.!?]")
_HELDOUT_SHARE = 0.1
_PEAK = 0.9


@dataclass(frozen=True)
class Utterance:
    """Something said by one voice: samples at 8 kHz, float32, with a root mean square of 1."""

    voice: str
    samples: np.ndarray


def read_sentences(split: Split) -> list[str]:
    """Return sentences of the standard library's documentation, in an order that is always the same."""
    found = set()
    for module in sorted(pkgutil.iter_modules(), key=lambda one: one.name):
        if module.name not in sys.stdlib_module_names or module.name in ("antigravity", "this", "idlelib"):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of modules that will go
                values = list(vars(importlib.import_module(module.name)).values())
                texts = [getattr(value, "__doc__", None) for value in values]
        except Exception:  # a module of another platform
            continue
        found |= {
            " ".join(sentence.split())
            for text in texts
            if isinstance(text, str)
            for sentence in _SENTENCE.findall(text)
        }
    return sorted(text for text in found if (_hash(text) < _HELDOUT_SHARE) == (split == "heldout"))


def list_voices(split: Split) -> list[str]:
    """Return the voices of a split: accents times variants."""
    variants = [name for name in VARIANTS if (name in HELDOUT_VARIANTS) == (split == "heldout")]
    return [f"{accent}+{variant}" for accent in ACCENTS for variant in variants]


def load_utterances(folder: Path, split: Split, per_voice: int, seed: int = 0) -> list[Utterance]:
    """Return what the voices of a split say; what is not in the folder yet is spoken and kept there.

    Args:
        folder: Where files of utterances lie.
        split: ``train`` or ``heldout``.
        per_voice: Utterances of each voice.
        seed: Decides who says what.
    """
    path = folder / f"{split}-{per_voice}-{seed}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        spoken = list(_speak_all(split, per_voice, seed))
        lengths = [len(samples) for _, samples in spoken]
        joined = np.concatenate([samples for _, samples in spoken])
        part = path.with_suffix(".part.npz")
        np.savez_compressed(part, voices=[voice for voice, _ in spoken], lengths=lengths, samples=joined)
        part.replace(path)
    with np.load(path) as stored:
        parts = np.split(stored["samples"], np.cumsum(stored["lengths"])[:-1])
        pairs = list(zip(stored["voices"].tolist(), parts, strict=True))
    return [Utterance(voice, _normalise(samples.astype(np.float32))) for voice, samples in pairs]


def _speak_all(split: Split, per_voice: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    random, sentences = np.random.default_rng(seed), read_sentences(split)
    for voice in list_voices(split):
        for text in random.choice(sentences, per_voice, replace=False):
            speed, pitch = int(random.integers(130, 200)), int(random.integers(20, 80))
            yield voice, speak(str(text), voice, speed, pitch)


def speak(text: str, voice: str, speed: int = 160, pitch: int = 50) -> np.ndarray:
    """Return speech at 8 kHz as int16, without the silence around it.

    Args:
        text: What is said.
        voice: A voice of espeak-ng, such as ``en-us+f3``.
        speed: Words a minute.
        pitch: 0 to 99.
    """
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout"]
    spoken = subprocess.run(command, input=text.encode(), capture_output=True, check=True)
    with wave.open(io.BytesIO(spoken.stdout)) as stream:
        rate = stream.getframerate()
        samples = np.frombuffer(stream.readframes(2**31 // 2), dtype="<i2").astype(np.float64)
    samples = resample(samples, rate)
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    samples = samples[loud[0] : loud[-1] + 1]
    return np.round(samples * (_PEAK * 32767 / np.abs(samples).max())).astype(np.int16)


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Return samples at 8 kHz: the spectrum up to 4 kHz, transformed back."""
    spectrum, length = np.fft.rfft(samples), round(len(samples) * SAMPLE_RATE / rate)
    return np.fft.irfft(spectrum[: length // 2 + 1], length) * (length / len(samples))


def _normalise(samples: np.ndarray) -> np.ndarray:
    return samples / np.sqrt(np.square(samples).mean())


def _hash(text: str) -> float:
    """Return a number from 0 to below 1 that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
