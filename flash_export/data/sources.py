"""Sources of batches: random ones, drawn by what an interface says of its inputs, and recorded ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from flash_export.data.batch import Batch
from flash_export.errors import InputError
from flash_export.interface import BATCH, SEQ, Features, TokenIds, Waveform

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flash_export.interface import Interface, TensorSpec

# A waveform is drawn with a spectrum that falls by the frequency, as speech and music do, from this many hertz on.
_CORNER_HZ = 100.0


class Source(Protocol):
    """Gives batches of any shape, the same ones for the same question."""

    @property
    def label(self) -> str:
        """What reports call it, such as ``random tokens``."""
        ...

    @property
    def interface(self) -> Interface:
        """What the batches are for."""
        ...

    def count_rows(self, seq_len: int) -> int | None:
        """Return how many different rows of a length it has; None: as many as are asked for."""
        ...

    def draw(self, batch: int, seq_len: int, *, seed: int = 0) -> Batch:
        """Return a batch without padding, from anywhere.

        Raises:
            InputError: It has no row of that length.
        """
        ...

    def take(self, count: int, seq_len: int) -> Batch:
        """Return the first rows of a length, as many as :meth:`count_rows` says there are at most."""
        ...


@dataclass(frozen=True)
class RandomSource:
    """Random inputs: token ids of the whole vocabulary, normal features of the stated scale, sound-like waveforms."""

    interface: Interface

    @property
    def label(self) -> str:
        """What reports call it."""
        contents = {type(spec.content) for spec in self.interface.inputs}
        return "random tokens" if TokenIds in contents else "random inputs"

    def count_rows(self, seq_len: int) -> int | None:
        """Return None: it never ends."""
        return None

    def draw(self, batch: int, seq_len: int, *, seed: int = 0) -> Batch:
        """Return a batch; the same arguments always give the same one."""
        rng = np.random.default_rng([seed, batch, seq_len])
        sizes = {BATCH: batch, SEQ: seq_len}
        arrays = {spec.name: _draw_tensor(spec, sizes, rng) for spec in self.interface.inputs}
        return Batch(self.interface, arrays, np.full(batch, seq_len, dtype=np.int64), seq_len)

    def take(self, count: int, seq_len: int) -> Batch:
        """Return random rows."""
        return self.draw(count, seq_len)


@dataclass(frozen=True)
class RecordedSource:
    """Arrays that were recorded: one or more rows of an equal length, from which shorter ones are cut.

    Attributes:
        interface: What they are.
        label: Where they come from.
        rows: A batch without padding.
    """

    interface: Interface
    label: str
    rows: Batch

    def count_rows(self, seq_len: int) -> int:
        """Return how many pieces of a length there are that do not overlap."""
        return self.rows.size * (self.rows.seq_len // seq_len)

    def draw(self, batch: int, seq_len: int, *, seed: int = 0) -> Batch:
        """Return rows that start anywhere in the recording.

        Raises:
            InputError: The recording is shorter.
        """
        if seq_len > self.rows.seq_len:
            raise InputError(
                f"{self.label} has {self.rows.seq_len} {self.interface.unit}, fewer than the {seq_len} that are asked "
                "for; give longer data, or use shorter lengths"
            )
        rng = np.random.default_rng([seed, batch, seq_len])
        chosen = rng.integers(0, self.rows.size, size=batch)
        starts = rng.integers(0, self.rows.seq_len - seq_len, size=batch, endpoint=True)
        return join_rows([cut_piece(self.rows, int(r), int(s), seq_len) for r, s in zip(chosen, starts, strict=True)])

    def take(self, count: int, seq_len: int) -> Batch:
        """Return pieces that follow each other as the rows of a batch."""
        return join_rows(self.list_pieces(count, seq_len))

    def list_pieces(self, count: int, seq_len: int) -> list[Batch]:
        """Return pieces that follow each other, a row each, ``count`` at most."""
        per_row = self.rows.seq_len // seq_len
        places = [(row, piece * seq_len) for row in range(self.rows.size) for piece in range(per_row)]
        return [cut_piece(self.rows, row, start, seq_len) for row, start in places[:count]]


@dataclass(frozen=True)
class Data:
    """What there is to feed a model with.

    Attributes:
        random: Drawn by its interface.
        recorded: Its held-out data; None where there is none.
    """

    random: RandomSource
    recorded: RecordedSource | None = None

    @property
    def preferred(self) -> Source:
        """The recorded data if there is any: what the model was trained on tells more."""
        return self.random if self.recorded is None else self.recorded


def count_rows(source: Source, seq_len: int, wanted: int) -> int:
    """Return how many rows of a length a source has, up to a wanted number."""
    there = source.count_rows(seq_len)
    return wanted if there is None else min(wanted, there)


def draw_padded(source: Source, batch: int, seq_len: int, *, seed: int = 0) -> Batch:
    """Return a batch whose rows, the first of several excepted, are padded on the right.

    What stands in the padding is real data too, so that a graph that reads it is found out. A single row is always
    padded. Rows have at least the shortest length of the interface, so that a batch of that length is not padded.
    """
    full = source.draw(batch, seq_len, seed=seed)
    shortest = source.interface.min_len
    lengths = full.lengths.copy()
    if seq_len > shortest:
        first = 0 if batch == 1 else 1
        rng = np.random.default_rng([seed, batch, seq_len, 1])
        lengths[first:] = rng.integers(shortest, seq_len, size=batch - first)
    return Batch(full.interface, full.arrays, lengths, seq_len)


def join_rows(batches: Sequence[Batch]) -> Batch:
    """Return the rows of several batches of one length as one batch."""
    first = batches[0]
    arrays = {
        spec.name: np.concatenate([one.arrays[spec.name] for one in batches], axis=spec.shape.index(BATCH))
        for spec in first.interface.inputs
    }
    return Batch(first.interface, arrays, np.concatenate([one.lengths for one in batches]), first.seq_len)


def cut_piece(rows: Batch, row: int, start: int, seq_len: int) -> Batch:
    """Return a piece of one row of a batch without padding."""
    alone = rows.take_rows([row])
    arrays = {}
    for spec in rows.interface.inputs:
        axis = spec.find_axis(SEQ)
        values = alone.arrays[spec.name]
        arrays[spec.name] = values if axis is None else np.take(values, range(start, start + seq_len), axis=axis)
    return Batch(rows.interface, arrays, np.array([seq_len]), seq_len)


def _draw_tensor(spec: TensorSpec, sizes: Mapping[str, int], rng: np.random.Generator) -> np.ndarray:
    shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
    content = spec.content
    if isinstance(content, TokenIds):
        return rng.integers(0, content.vocab_size, size=shape).astype(spec.dtype)
    if isinstance(content, Features):
        return (content.scale * rng.standard_normal(shape)).astype(spec.dtype)
    if isinstance(content, Waveform):
        return _draw_waveform(shape, spec.shape.index(SEQ), content, rng).astype(spec.dtype)
    raise InputError(f"{spec.name} holds {content}, which cannot be drawn at random; give recorded data")


def _draw_waveform(shape: Sequence[int], axis: int, content: Waveform, rng: np.random.Generator) -> np.ndarray:
    """Return noise whose amplitude falls in proportion to the frequency above a corner, with the stated loudness."""
    white = rng.standard_normal(shape)
    if shape[axis] < 2:
        return content.scale * white
    spectrum = np.fft.rfft(white, axis=axis)
    hertz = np.fft.rfftfreq(shape[axis], 1 / content.sample_rate)
    gain = (1 / np.maximum(hertz / _CORNER_HZ, 1)).reshape([-1 if index == axis else 1 for index in range(len(shape))])
    sound = np.fft.irfft(spectrum * gain, n=shape[axis], axis=axis)
    loudness = np.sqrt(np.mean(np.square(sound), axis=axis, keepdims=True))
    return content.scale * sound / np.where(loudness > 0, loudness, 1)
