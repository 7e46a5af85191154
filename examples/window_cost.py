"""What it costs a model that separates to hear a recording in windows: SI-SDR in dB, by the length of a window.

    python examples/window_cost.py BUNDLE --speech /tmp/separation.run [--mixtures 12] [--seconds 16]

BUNDLE is an export of what ``train_separation.py`` made, the folder is where that keeps what espeak-ng said. Mixtures
are of held-out voices. Each is processed as a whole and in windows, the sources of which are put into one order.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from speech_corpus import load_utterances
from train_separation import mix

from flash_export.audio.session import open_separator
from flash_export.audio.windows import ContinuedOrder, Samples, Windows, process
from flash_export.bundle.bundle import Bundle
from flash_export.tasks.signal import compute_separation

if TYPE_CHECKING:
    from flash_export.audio.session import Session

WINDOW_SECONDS = (1.0, 2.0, 4.0, 8.0)


def separate(session: Session, waveform: np.ndarray, window_s: float | None) -> np.ndarray:
    """Return the sources of a mixture, ``(k, n)``; None: as a whole."""
    if window_s is None:
        return session.run(waveform)
    length = round(window_s * session.sample_rate)
    windows = Windows(length, length)
    pieces = process(Samples([waveform]), windows, ContinuedOrder(session.run, windows.stride))
    return np.concatenate(list(pieces), axis=1)[:, : len(waveform)]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--speech", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--per-voice", type=int, default=6, show_default=True, help="Utterances of each voice, as in training.")
@click.option("--mixtures", type=int, default=12, show_default=True)
@click.option("--seconds", type=float, default=16.0, show_default=True)
def main(bundle: Path, speech: Path, per_voice: int, mixtures: int, seconds: float) -> None:
    """Print the mean SI-SDR as a whole and in windows."""
    mixed = mix(load_utterances(speech, "heldout", per_voice), mixtures, seconds, np.random.default_rng(7))
    found: dict[str, list[float]] = {}
    with open_separator(Bundle.open(bundle), "ort-cpu") as session:
        for waveform, sources in zip(mixed.waveform, mixed.sources, strict=True):
            for window_s in (None, *WINDOW_SECONDS):
                name = "whole" if window_s is None else f"{window_s:g} s"
                ratio = compute_separation(sources, separate(session, waveform, window_s))
                found.setdefault(name, []).append(ratio)
    click.echo(json.dumps({name: round(float(np.mean(ratios)), 2) for name, ratios in found.items()}))


if __name__ == "__main__":
    main()
