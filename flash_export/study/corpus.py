"""The text of the byte models: the Python standard library's own sources, split by file.

A file belongs to one split for good, by the hash of its relative path, so that no line of a file that is
measured was ever trained on. ``validation`` picks the best checkpoint, ``heldout`` is only reported.
"""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from flash_export.errors import InputError
from flash_export.reading import read_bytes

Split = Literal["train", "validation", "heldout"]

HELDOUT_PERCENT = 3
VALIDATION_PERCENT = 2
# test and the tables are not typical code; lib2to3 holds near copies of other modules (pgen2/tokenize.py),
# which would leak held-out text into training; config-* and _sysconfigdata* hold this machine's paths.
EXCLUDED_PARTS = frozenset({"site-packages", "test", "tests", "encodings", "pydoc_data", "lib2to3"})
EXCLUDED_PREFIXES = ("config-", "_sysconfigdata")
MAX_TEXT_BYTES = 1 << 32


@dataclass(frozen=True)
class SourceFile:
    """One module: its path relative to the standard library, in posix form, and its text."""

    path: str
    text: str

    @property
    def split(self) -> Split:
        """Return the split of the file, which its path alone decides."""
        bucket = int(hashlib.sha256(self.path.encode()).hexdigest()[:8], 16) % 100
        if bucket < HELDOUT_PERCENT:
            return "heldout"
        return "validation" if bucket < HELDOUT_PERCENT + VALIDATION_PERCENT else "train"


def read_sources(root: Path | None = None) -> list[SourceFile]:
    """Read the ``.py`` files under ``root`` in the order of their paths.

    Args:
        root: The folder to read; None for the standard library of the running Python.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    sources = []
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        relative = path.relative_to(root)
        if EXCLUDED_PARTS.intersection(relative.parts) or relative.parts[0].startswith(EXCLUDED_PREFIXES):
            continue
        try:
            text = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError:
            continue
        sources.append(SourceFile(relative.as_posix(), text))
    return sources


def join_split(sources: list[SourceFile], split: Split) -> np.ndarray:
    """Return the bytes of all files of a split, one after the other, as uint8."""
    text = "".join(source.text for source in sources if source.split == split)
    return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)


def excerpt_heldout(sources: list[SourceFile], num_bytes: int) -> str:
    """Return about ``num_bytes`` of held-out text: whole lines from the middle of every held-out file.

    Short files come first and leave what they lack to the longer ones, so that no module dominates.
    """
    heldout = sorted((source for source in sources if source.split == "heldout"), key=lambda source: len(source.text))
    pieces: list[str] = []
    remaining = num_bytes
    for rank, source in enumerate(heldout):
        piece = cut_middle(source.text, remaining // (len(heldout) - rank))
        pieces.append(piece)
        remaining -= len(piece.encode("utf-8"))
    return "".join(pieces)


def cut_middle(text: str, num_bytes: int) -> str:
    """Return the whole lines around the middle of ``text`` that first reach ``num_bytes``, or all of it."""
    start = max(0, len(text) - num_bytes) // 2
    position = size = 0
    piece = []
    for line in text.splitlines(keepends=True):
        if position >= start and size < num_bytes:
            piece.append(line)
            size += len(line.encode("utf-8"))
        position += len(line)
    return "".join(piece)


@dataclass(frozen=True)
class Corpus:
    """The three texts of a study, as bytes; ``excerpt`` is the held-out one as text."""

    training: np.ndarray
    validation: np.ndarray
    heldout: np.ndarray
    excerpt: str


MIN_VALIDATION_BYTES = 16 * 1024
# Of a text file: what is trained on, and where validation ends.
TRAINING_SHARE, VALIDATION_SHARE = 0.95, 0.97


def read_corpus(text: Path | None, heldout_bytes: int) -> Corpus:
    """Read the texts.

    Args:
        text: A file in UTF-8, whose end is held out; None: the standard library of the running Python.
        heldout_bytes: Size of the held-out text, about.

    Raises:
        InputError: The file cannot be read, or is too short.
    """
    num_validation = max(heldout_bytes // 4, MIN_VALIDATION_BYTES)
    if text is None:
        sources = read_sources()
        excerpt = excerpt_heldout(sources, heldout_bytes)
        training, validation = join_split(sources, "train"), join_split(sources, "validation")[:num_validation]
        return Corpus(training, validation, np.frombuffer(excerpt.encode("utf-8"), dtype=np.uint8), excerpt)
    data = read_bytes(text, InputError, "give a text file", max_bytes=MAX_TEXT_BYTES)
    ends = [int(share * len(data)) for share in (TRAINING_SHARE, VALIDATION_SHARE)]
    excerpt = data[ends[1] :][:heldout_bytes].decode("utf-8", errors="ignore")
    parts = [
        np.frombuffer(part, dtype=np.uint8) for part in (data[: ends[0]], data[ends[0] : ends[1]][:num_validation])
    ]
    heldout = np.frombuffer(excerpt.encode("utf-8"), dtype=np.uint8)
    if min(len(part) for part in (*parts, heldout)) < MIN_VALIDATION_BYTES // 8:
        raise InputError(
            f"{text} has {len(data):,} bytes, too few to train on and to hold some out; give a longer text"
        )
    return Corpus(parts[0], parts[1], heldout, excerpt)
