"""Train a small MossFormer2 to tell two speakers apart, on speech of espeak-ng (Debian: apt install espeak-ng).

    python examples/train_separation.py --output /tmp/separation --minutes 150

The output folder is a checkpoint that ``flash-export`` reads, with mixtures of voices and texts that were held out. It
is rewritten whenever the model got better. Beside it, in ``OUTPUT.run``, lie what was spoken and the state of the run:
an interrupted run is taken up where it was when the same command is given again.
"""

from __future__ import annotations

import copy
import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch
from speech_corpus import SAMPLE_RATE, load_utterances
from training_run import Run

from flash_export.models.mossformer2 import Mossformer2Config, WaveformFrames, build_mossformer2

if TYPE_CHECKING:
    from speech_corpus import Utterance
    from torch import Tensor

    from flash_export.models.mossformer2 import Mossformer2Model

CONFIG = Mossformer2Config(
    in_channels=128,
    dim=128,
    depth=5,
    hidden_dim=256,
    out_channels=128,
    qk_dim=64,
    chunk_size=128,
    fsmn="dilated",
    fsmn_dim=64,
    frames=WaveformFrames(kernel_size=32, sample_rate=SAMPLE_RATE),
)
MAX_DIFFERENCE_DB = 5.0  # of the louder speaker to the other one
LOUDNESS = 0.1  # root mean square of a mixture
MAX_LOSS_DB = 30.0  # a mixture that is separated this well teaches nothing more
VALIDATION = 12, 3.0  # mixtures and their seconds, by which the best model is chosen
HELDOUT = 8, 2.0  # those that are kept with it


@dataclass(frozen=True)
class Mixtures:
    """Mixtures of two speakers and what each of them says: ``(b, n)`` and ``(b, 2, n)``, float32."""

    waveform: np.ndarray
    sources: np.ndarray


def mix(utterances: list[Utterance], count: int, seconds: float, random: np.random.Generator) -> Mixtures:
    """Mix pairs of voices; what is shorter than wanted is said again."""
    length = round(seconds * SAMPLE_RATE)
    sources = np.zeros((count, 2, length), dtype=np.float32)
    for row in range(count):
        first, second = (utterances[index] for index in random.choice(len(utterances), 2, replace=False))
        while first.voice == second.voice:
            second = utterances[random.integers(len(utterances))]
        difference = random.uniform(0, MAX_DIFFERENCE_DB) * random.choice((-1, 1))
        for speaker, (said, decibels) in enumerate(((first, difference / 2), (second, -difference / 2))):
            start = int(random.integers(max(1, len(said.samples) - length + 1)))
            part = np.resize(said.samples, max(length, len(said.samples)))[start : start + length]
            sources[row, speaker] = part * 10 ** (decibels / 20)
    scale = LOUDNESS / np.sqrt(np.square(sources.sum(axis=1)).mean(axis=-1))
    sources *= scale[:, None, None].astype(np.float32)
    return Mixtures(sources.sum(axis=1), sources)


def measure_si_sdr(estimated: Tensor, sources: Tensor) -> Tensor:
    """Return the scale-invariant ratio in dB of each mixture ``(b,)``, at the better of the two orders of speakers."""
    estimated, sources = (x - x.mean(dim=-1, keepdim=True) for x in (estimated, sources))
    ratios = []
    for order in itertools.permutations(range(sources.shape[1])):
        wanted = sources[:, list(order)]
        share = (estimated * wanted).sum(-1, keepdim=True) / (wanted.square().sum(-1, keepdim=True) + 1e-8)
        projection = share * wanted
        noise = (estimated - projection).square().sum(-1)
        ratios.append(10 * torch.log10((projection.square().sum(-1) + 1e-8) / (noise + 1e-8)).mean(-1))
    return torch.stack(ratios).max(dim=0).values


@torch.inference_mode()
def evaluate(model: Mossformer2Model, heldout: Mixtures) -> tuple[float, float]:
    """Return the SI-SDR on mixtures, and how much better that is than of the mixtures themselves, in dB."""
    model.eval()
    waveform, sources = torch.from_numpy(heldout.waveform), torch.from_numpy(heldout.sources)
    found = torch.cat(
        [measure_si_sdr(model(waveform[row : row + 1]), sources[row : row + 1]) for row in range(len(waveform))]
    )
    before = measure_si_sdr(waveform[:, None].expand_as(sources), sources)
    model.train()
    return float(found.mean()), float((found - before).mean())


def describe_heldout(model: Mossformer2Model, heldout: Mixtures) -> dict[str, float]:
    """Return what the model is worth on held-out mixtures, in half precision as it is stored."""
    found, gain = evaluate(copy.deepcopy(model).half().float(), heldout)
    return {"heldout_si_sdr_db": round(found, 2), "heldout_improvement_db": round(gain, 2)}


def write_checkpoint(folder: Path, model: Mossformer2Model, heldout: Mixtures, facts: dict[str, Any]) -> None:
    """Write the model in half precision with the held-out mixtures and how it was trained."""
    model.save_pretrained(folder, dtype=torch.float16)
    np.savez_compressed(
        folder / "heldout.npz",
        waveform=heldout.waveform.astype(np.float16).astype(np.float32),
        target=heldout.sources.astype(np.float16).astype(np.float32),
    )
    settings = {"objective": "none", "tokenizer": "arrays", "seq_len": heldout.waveform.shape[1]}
    (folder / "heldout.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n")


def train_step(run: Run, model: Mossformer2Model, mixtures: Mixtures, progress: float) -> float:
    """Learn from mixtures; return their SI-SDR in dB."""
    ratio = measure_si_sdr(model(torch.from_numpy(mixtures.waveform)), torch.from_numpy(mixtures.sources))
    run.learn(-ratio.clamp(max=MAX_LOSS_DB).mean(), progress)
    return float(ratio.mean())


@click.command()
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="Checkpoint folder.")
@click.option("--minutes", type=float, default=150.0, show_default=True, help="CPU time of the run in all.")
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--batch", type=int, default=2, show_default=True, help="Mixtures a step.")
@click.option("--seconds", type=float, default=2.0, show_default=True, help="Length of a mixture.")
@click.option("--per-voice", type=int, default=30, show_default=True, help="Utterances of each voice.")
@click.option("--learning-rate", type=float, default=1e-3, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def main(
    output: Path,
    minutes: float,
    threads: int,
    batch: int,
    seconds: float,
    per_voice: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Train, and keep the best model."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model = build_mossformer2(CONFIG)
    run = Run(output, {"model": model}, learning_rate, seed)
    utterances = load_utterances(run.folder, "train", per_voice)
    others = load_utterances(run.folder, "heldout", max(4, per_voice // 5))
    validation = mix(others, *VALIDATION, np.random.default_rng([seed, 0]))
    heldout = mix(others, *HELDOUT, np.random.default_rng([seed, 1]))
    begun, ratios, last_saved = time.process_time() - run.seconds, [], time.monotonic()
    while run.seconds < 60 * minutes:
        mixtures = mix(utterances, batch, seconds, run.random)
        ratios.append(train_step(run, model, mixtures, run.seconds / (60 * minutes)))
        run.seconds = time.process_time() - begun
        is_last = run.seconds >= 60 * minutes
        if time.monotonic() - last_saved < 120 and not is_last:
            continue
        found, gain = evaluate(model, validation)
        entry = {
            "step": run.step,
            "minutes": round(run.seconds / 60, 1),
            "training_si_sdr_db": round(float(np.mean(ratios)), 2),
            "validation_si_sdr_db": round(found, 2),
            "validation_improvement_db": round(gain, 2),
        }
        run.history.append(entry)
        click.echo(json.dumps(entry))
        if found > run.best:
            run.best = found
            facts = {
                "task": "two speakers of espeak-ng at 8 kHz, mixed at 0 to 5 dB",
                **describe_heldout(model, heldout),
                "parameters": model.count_parameters(),
                "voices": len({one.voice for one in utterances}),
                "heldout_voices": len({one.voice for one in others}),
                "batch": batch,
                "seconds": seconds,
                "learning_rate": learning_rate,
                "seed": seed,
                **entry,
                "history": run.history,
            }
            write_checkpoint(output, model, heldout, facts)
        run.save()
        ratios, last_saved = [], time.monotonic()


if __name__ == "__main__":
    main()
