"""Audio files: read block by block at the rate that a model wants, and written whole or not at all."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flash_export.errors import BackendUnavailableError, InputError
from flash_export.files import replace_file
from flash_export.install import get_install_command
from flash_export.printable import format_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from jaxtyping import Float

BLOCK_SECONDS = 1.0
EXTRA = "audio"
MAX_CHANNELS = 64  # each is kept in files of its own


@dataclass(frozen=True)
class Recording:
    """An audio file that can be read.

    Attributes:
        path: The file.
        sample_rate: Samples per second.
        channels: Channels.
        num_samples: Samples of each channel.
        subtype: How the file stores a sample, such as ``PCM_16``.
    """

    path: Path
    sample_rate: int
    channels: int
    num_samples: int
    subtype: str

    @property
    def seconds(self) -> float:
        """Length."""
        return self.num_samples / self.sample_rate


def open_recording(path: Path) -> Recording:
    """Read what a file says of itself.

    Raises:
        BackendUnavailableError: The libraries that read audio are not installed.
        InputError: The file cannot be read, or has no samples.
    """
    soundfile, _ = _import_libraries()
    try:
        with soundfile.SoundFile(path) as stream:
            found = Recording(path, stream.samplerate, stream.channels, stream.frames, stream.subtype)
    except (soundfile.LibsndfileError, OSError, ValueError) as error:
        text = " ".join(str(error).split())
        raise InputError(
            f"{format_path(path)} cannot be read as audio ({text}); give a WAV, FLAC or OGG file"
        ) from error
    if found.channels > MAX_CHANNELS:
        raise InputError(
            f"{format_path(path)} has {found.channels} channels, more than {MAX_CHANNELS}; give some of them"
        )
    if not found.num_samples:
        raise InputError(f"{format_path(path)} has no samples; give a file with sound in it")
    return found


def read_channel(recording: Recording, channel: int, sample_rate: int) -> Iterator[Float[np.ndarray, " n"]]:
    """Yield the samples of a channel, block by block, at a rate; full scale is 1.

    Raises:
        InputError: The file is damaged, or a sample is not finite.
    """
    soundfile, soxr = _import_libraries()
    resampler = None
    if sample_rate != recording.sample_rate:
        resampler = soxr.ResampleStream(recording.sample_rate, sample_rate, 1, dtype="float32")
    remaining, size = recording.num_samples, max(1, int(BLOCK_SECONDS * recording.sample_rate))
    with soundfile.SoundFile(recording.path) as stream:
        while remaining:
            try:
                block = stream.read(min(size, remaining), dtype="float32", always_2d=True)[:, channel]
            except soundfile.LibsndfileError as error:
                raise InputError(f"{format_path(recording.path)} is damaged ({error}); give the whole file") from error
            if not len(block):
                raise InputError(f"{format_path(recording.path)} ends before its header says; give the whole file")
            if not np.isfinite(block).all():
                raise InputError(f"{format_path(recording.path)} has samples that are not finite; give another file")
            remaining -= len(block)
            yield block if resampler is None else resampler.resample_chunk(block, last=not remaining)


def resample(
    blocks: Iterable[Float[np.ndarray, " n"]], recording: Recording, sample_rate: int
) -> Iterator[Float[np.ndarray, " n"]]:
    """Yield samples of a rate at that of a recording, as many as it has.

    Args:
        blocks: The samples.
        recording: Whose rate and length they are to have.
        sample_rate: The rate that they have.
    """
    _, soxr = _import_libraries()
    written = 0
    if sample_rate != recording.sample_rate:
        stream = soxr.ResampleStream(sample_rate, recording.sample_rate, 1, dtype="float32")
        blocks = _resample(blocks, stream)
    for block in blocks:
        part = block[: recording.num_samples - written]
        written += len(part)
        yield part
    if written < recording.num_samples:
        yield np.zeros(recording.num_samples - written, dtype=np.float32)


def _resample(blocks: Iterable[Float[np.ndarray, " n"]], stream: Any) -> Iterator[Float[np.ndarray, " n"]]:
    for block in blocks:
        yield stream.resample_chunk(np.ascontiguousarray(block, dtype=np.float32))
    yield stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True)


@contextmanager
def write_recording(path: Path, like: Recording) -> Iterator[Any]:
    """Yield a file to write samples ``(n, channels)`` to; it appears under its name when the block is through.

    Args:
        path: The file; its ending says the format.
        like: Whose rate, channels and kind of samples it gets.

    Raises:
        InputError: The ending is of no format that can hold such samples.
        BundleError: The folder cannot be written, or the disk is full.
    """
    soundfile, _ = _import_libraries()
    kind = path.suffix.lstrip(".").upper()
    if kind not in soundfile.available_formats():
        raise InputError(f"{format_path(path)} has the ending of no format; use .wav, .flac or .ogg")
    subtype = like.subtype if soundfile.check_format(kind, like.subtype) else soundfile.default_subtype(kind)
    with (
        replace_file(path) as stream,
        soundfile.SoundFile(
            stream, "w", samplerate=like.sample_rate, channels=like.channels, format=kind, subtype=subtype
        ) as sound,
    ):
        yield sound


def _import_libraries() -> tuple[Any, Any]:
    try:
        import soundfile
        import soxr
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(
            f"audio files cannot be read here: {error}; {get_install_command(EXTRA)}"
        ) from error
    return soundfile, soxr
