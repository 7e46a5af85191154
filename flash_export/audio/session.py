"""A model of a bundle, opened for recordings: which kind it is, and how its windows are run."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from flash_export.config import FORWARD, MAX_THREADS, check_count
from flash_export.errors import ConfigError
from flash_export.interface import BATCH, SEQ, Features, Waveform
from flash_export.layers.spectrum import FULL_SCALE, Frames, compute_features, compute_spectrum, invert_spectrum
from flash_export.models.mossformer2 import ENHANCEMENT_FRAMES
from flash_export.printable import format_path
from flash_export.runtime.backends import find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jaxtyping import Float

    from flash_export.bundle.bundle import Bundle
    from flash_export.runtime.runner import Runner


@dataclass(frozen=True)
class Session:
    """An open model.

    Attributes:
        sample_rate: Samples per second that it takes.
        num_sources: Waveforms that it makes of one.
        shortest: Samples that it takes at least.
        longest: Samples that it takes at most.
        run: Processes samples of one channel, full scale being 1.
    """

    sample_rate: int
    num_sources: int
    shortest: int
    longest: int
    run: Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, "k n"]]


@contextmanager
def open_enhancer(bundle: Bundle, backend: str, threads: int | None = None) -> Iterator[Session]:
    """Open a model that makes masks of features, or speech of a waveform.

    Raises:
        ConfigError: The bundle has another kind of model, or features that are not those of 48 kHz speech.
        BackendUnavailableError: The backend cannot be used here.
    """
    frames, interface = ENHANCEMENT_FRAMES, bundle.manifest.interface
    content, shape = interface.inputs[0].content, interface.outputs[0].shape
    if isinstance(content, Waveform) and len(shape) == len((BATCH, SEQ)):
        with _open_waveform(bundle, content, 1, backend, threads) as session:
            yield session
            return
    check_count("threads", threads, MAX_THREADS)
    is_mask = interface.task == "signal" and isinstance(content, Features)
    if not is_mask or (interface.inputs[0].shape[-1], shape[-1]) != frames.sizes:
        raise ConfigError(
            f"{format_path(bundle.path)} makes {interface.outputs[0].name} of {interface.inputs[0].name}, wanted "
            f"the mask of {frames.num_frequencies} frequencies of {3 * frames.num_bands} features; give an export of "
            "MossFormer2_SE_48K"
        )
    _check_batch(bundle)
    axis = bundle.get_graph(FORWARD).axes[SEQ]
    with find_target(bundle, backend, FORWARD).open(threads=threads) as runner:

        def run(samples: Float[np.ndarray, " n"]) -> Float[np.ndarray, "1 n"]:
            return enhance_window(runner, samples, frames)

        longest = frames.length + (axis.max - 1) * frames.hop + frames.hop - 1
        yield Session(frames.sample_rate, 1, frames.length + (axis.min - 1) * frames.hop, longest, run)


def enhance_window(runner: Runner, samples: Float[np.ndarray, " n"], frames: Frames) -> Float[np.ndarray, "1 n"]:
    """Return the speech in samples: their spectrum times the mask that the model makes of their features.

    Features are computed in units of 16-bit samples and, unlike in clearvoice, without dither.
    """
    import torch

    waveform = torch.from_numpy(np.asarray(samples, dtype=np.float32))[None] * FULL_SCALE
    outputs = runner.run({"features": compute_features(waveform, frames).numpy()})
    spectrum = compute_spectrum(waveform, frames) * torch.from_numpy(next(iter(outputs.values())))
    return (invert_spectrum(spectrum, frames, len(samples)) / FULL_SCALE).numpy()


@contextmanager
def open_separator(bundle: Bundle, backend: str, threads: int | None = None) -> Iterator[Session]:
    """Open a model that makes several waveforms of one.

    Raises:
        ConfigError: The bundle has another kind of model.
        BackendUnavailableError: The backend cannot be used here.
    """
    interface = bundle.manifest.interface
    source, content = interface.outputs[0], interface.inputs[0].content
    if not isinstance(content, Waveform) or len(source.shape) != len((BATCH, "sources", SEQ)):
        raise ConfigError(
            f"{format_path(bundle.path)} makes {source.name} of {interface.inputs[0].name}, wanted waveforms of a "
            "waveform; give an export of a MossFormer2 that separates, such as MossFormer2_SS_16K"
        )
    with _open_waveform(bundle, content, cast("int", source.shape[1]), backend, threads) as session:
        yield session


@contextmanager
def _open_waveform(
    bundle: Bundle, content: Waveform, num_sources: int, backend: str, threads: int | None
) -> Iterator[Session]:
    """Open a graph from waveform to waveforms."""
    check_count("threads", threads, MAX_THREADS)
    _check_batch(bundle)
    interface, axis = bundle.manifest.interface, bundle.get_graph(FORWARD).axes[SEQ]
    with find_target(bundle, backend, FORWARD).open(threads=threads) as runner:

        def run(samples: Float[np.ndarray, " n"]) -> Float[np.ndarray, "k n"]:
            outputs = runner.run({interface.inputs[0].name: np.asarray(samples, dtype=np.float32)[None]})
            return outputs[interface.outputs[0].name].reshape(num_sources, -1)

        yield Session(content.sample_rate, num_sources, axis.min, axis.max, run)


def _check_batch(bundle: Bundle) -> None:
    batch = bundle.get_graph(FORWARD).axes[BATCH]
    if batch.min > 1:
        raise ConfigError(
            f"{format_path(bundle.path)} takes {batch.min} sequences at once, a recording is one; export it "
            "without --batch"
        )
