"""Recordings through a model: every channel alone, window by window, in memory that does not grow with the length."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from flash_export.audio.files import open_recording, read_channel, resample, write_recording
from flash_export.audio.windows import ContinuedOrder, Samples, Windows, process
from flash_export.errors import ConfigError, InputError
from flash_export.printable import format_path
from flash_export.strict_json import format_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from jaxtyping import Float

    from flash_export.audio.files import Recording
    from flash_export.audio.session import Session
    from flash_export.progress import ProgressCallback

_BLOCK_BYTES = 1 << 18
# What clearvoice 0.1.2 does (config/inference/*.yaml), in seconds.
ENHANCEMENT_WINDOW_S, ENHANCEMENT_WHOLE_S = 4.0, 20.0
SEPARATION_WINDOW_S, SEPARATION_WHOLE_S = 2.0, 2.0
MAX_WINDOW_S = 3600.0


@dataclass(frozen=True)
class Processed:
    """What was made of a recording.

    Attributes:
        source: The file that was read.
        files: The files that were written.
        seconds: Length of the recording.
        elapsed_s: Time that it took.
        window_s: Length of a window, in seconds.
        backend: What ran the model.
    """

    source: str
    files: tuple[str, ...]
    seconds: float
    elapsed_s: float
    window_s: float
    backend: str

    @property
    def real_time_factor(self) -> float:
        """Time that it took as a fraction of the length of the recording: below 1 it is faster than it is played."""
        return self.elapsed_s / self.seconds

    def to_json(self) -> str:
        """Return strict JSON."""
        return format_json({**vars(self), "real_time_factor": self.real_time_factor})


def enhance(
    session: Session,
    source: Path,
    target: Path,
    *,
    backend: str,
    window_s: float = ENHANCEMENT_WINDOW_S,
    progress: ProgressCallback | None = None,
) -> Processed:
    """Write the speech of a recording, at its rate and with its channels.

    Args:
        session: The open model.
        source: The recording.
        target: File to write.
        backend: What runs the model, for the record.
        window_s: Length of a window; up to five of them are processed as a whole, as clearvoice does.
        progress: Called before each second.

    Raises:
        InputError: The recording cannot be read, or is too short for the model.
        ConfigError: A window does not fit into the graph.
        BundleError: The file cannot be written.
    """
    return _process(session, source, [target], backend, _cut(session, window_s, ENHANCEMENT_WHOLE_S), progress)


def separate(
    session: Session,
    source: Path,
    folder: Path,
    *,
    backend: str,
    window_s: float = SEPARATION_WINDOW_S,
    progress: ProgressCallback | None = None,
) -> Processed:
    """Write each source of a recording to a file of its own: ``NAME_s1.wav`` and so on.

    As in clearvoice, each source gets the root mean square of the whole recording. The sources of a window are put into
    the order in which they continue those of the window before.

    Args:
        session: The open model.
        source: The recording.
        folder: Folder to write to.
        backend: What runs the model, for the record.
        window_s: Length of a window.
        progress: Called before each second.

    Raises:
        InputError: The recording cannot be read, or is too short for the model.
        ConfigError: A window does not fit into the graph.
        BundleError: A file cannot be written.
    """
    targets = [folder / f"{source.stem}_s{index + 1}{source.suffix}" for index in range(session.num_sources)]
    windows = _cut(session, window_s, SEPARATION_WHOLE_S, pads_whole=True)
    return _process(session, source, targets, backend, windows, progress, keeps_level=True)


def _cut(session: Session, window_s: float, whole_s: float, *, pads_whole: bool = False) -> Windows:
    """Return the windows of a length in seconds.

    Raises:
        ConfigError: The graph takes no such window.
    """
    if not 0 < window_s <= MAX_WINDOW_S:
        raise ConfigError(f"window={window_s:g} s is not usable; use a number above 0 and up to {MAX_WINDOW_S:g}")
    length = round(window_s * session.sample_rate)
    whole = max(round(whole_s * session.sample_rate), length)
    windows = Windows(length, min(whole, session.longest), pads_whole)
    if windows.edge < 1 or length < session.shortest or windows.find_whole_length(length) > session.longest:
        raise ConfigError(
            f"window={window_s:g} s is {length} samples at {session.sample_rate} Hz, and the graph takes "
            f"{session.shortest} to {session.longest}; choose another window, or export with a larger --max-seq-len"
        )
    return windows


def _process(
    session: Session,
    source: Path,
    targets: Sequence[Path],
    backend: str,
    windows: Windows,
    progress: ProgressCallback | None,
    *,
    keeps_level: bool = False,
) -> Processed:
    """Process every channel, and then write what was made of them all."""
    start, recording = time.perf_counter(), open_recording(source)
    _check_length(session, recording, windows)
    if any(target.exists() and target.samefile(source) for target in targets):
        raise InputError(f"{format_path(source)} is the recording itself, and would be replaced; write to another file")
    with ExitStack() as stack:
        channels = []
        for channel in range(recording.channels):
            tracks = [Track(stack.enter_context(tempfile.TemporaryFile())) for _ in targets]
            for seconds in _run_channel(session, recording, channel, windows, tracks, keeps_level=keeps_level):
                if progress:
                    done = channel * recording.seconds + min(seconds, recording.seconds)
                    progress(round(done), round(recording.channels * recording.seconds), "seconds of sound")
            channels.append(tracks)
        for index, target in enumerate(targets):
            blocks = (resample(tracks[index].read(), recording, session.sample_rate) for tracks in channels)
            with write_recording(target, recording) as sound:
                for parts in zip(*blocks, strict=True):
                    sound.write(np.stack(parts, axis=-1))  # whole numbers are clipped, not wrapped
    elapsed_s, window_s = time.perf_counter() - start, windows.length / session.sample_rate
    return Processed(str(source), tuple(map(str, targets)), recording.seconds, elapsed_s, window_s, backend)


def _check_length(session: Session, recording: Recording, windows: Windows) -> None:
    """Refuse a recording that is too short.

    Raises:
        InputError: It is.
    """
    num_samples = recording.num_samples * session.sample_rate // recording.sample_rate
    if not windows.pads_whole and num_samples < session.shortest:
        raise InputError(
            f"{format_path(recording.path)} is {recording.seconds:.3g} s long, the model needs "
            f"{session.shortest / session.sample_rate:.3g} s; give a longer recording"
        )


def _run_channel(
    session: Session,
    recording: Recording,
    channel: int,
    windows: Windows,
    tracks: Sequence[Track],
    *,
    keeps_level: bool,
) -> Iterator[float]:
    """Process a channel into tracks, and yield how many seconds are done."""
    heard = Loudness()
    samples = Samples(heard.listen(read_channel(recording, channel, session.sample_rate)))
    run = ContinuedOrder(session.run, windows.stride) if len(tracks) > 1 else session.run
    made, written = [Loudness() for _ in tracks], 0
    for piece in process(samples, windows, run, padded=keeps_level):
        kept = piece[:, : max(0, samples.total - written)]
        reach = windows.find_reach(samples.total) if samples.is_over else written + piece.shape[1]
        for index, track in enumerate(tracks):
            track.write(kept[index])
            made[index].add(piece[index][: max(0, reach - written)])
        written += piece.shape[1]
        yield min(written, samples.total) / session.sample_rate
    if keeps_level:  # clearvoice takes the mean of all that it computes, and of its padding
        for one, track in zip(made, tracks, strict=True):
            mean_square = one.energy / windows.find_padded_length(samples.total)
            track.gain = (heard.mean_square / mean_square) ** 0.5 if mean_square else 0.0


class Loudness:
    """Adds up the squares of samples."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.energy, self.count = 0.0, 0

    def add(self, samples: Float[np.ndarray, " n"]) -> None:
        """Count samples."""
        self.energy += float(np.square(samples, dtype=np.float64).sum())
        self.count += len(samples)

    def listen(self, blocks: Iterator[Float[np.ndarray, " n"]]) -> Iterator[Float[np.ndarray, " n"]]:
        """Yield what is given, and count it."""
        for block in blocks:
            self.add(block)
            yield block

    @property
    def mean_square(self) -> float:
        """The mean of the squares."""
        return self.energy / self.count if self.count else 0.0


class Track:
    """The samples of one source and channel, in a file without a name; ``gain`` is applied when they are read."""

    def __init__(self, stream: BinaryIO) -> None:
        """Start with nothing in a temporary file."""
        self.gain, self._stream = 1.0, stream

    def write(self, samples: Float[np.ndarray, " n"]) -> None:
        """Append samples."""
        self._stream.write(np.ascontiguousarray(samples, dtype=np.float32).tobytes())

    def read(self) -> Iterator[Float[np.ndarray, " n"]]:
        """Yield all samples from the first on."""
        self._stream.seek(0)
        while data := self._stream.read(_BLOCK_BYTES):
            yield np.frombuffer(data, dtype=np.float32) * np.float32(self.gain)
