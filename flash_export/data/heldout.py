"""Held-out data: what a model is judged on and calibrated with, in a bundle, in a checkpoint folder, or in a file.

``heldout.json`` says how the file beside it is read; docs/data.md describes both. Text is for models of bytes,
``.npy`` and ``.npz`` hold token ids of any vocabulary, and ``.npz`` of arrays by the names of a model's inputs is for
all others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from flash_export.bundle.bundle import HELDOUT_FILES, SETTINGS_FILE
from flash_export.data.arrays import ARCHIVES, parse_arrays
from flash_export.data.batch import Batch
from flash_export.data.samples import Sample
from flash_export.data.sources import Data, RandomSource, RecordedSource
from flash_export.errors import BundleError, InputError
from flash_export.interface import BATCH, SEQ
from flash_export.reading import read_bytes, read_record

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle
    from flash_export.errors import FlashExportError
    from flash_export.interface import Interface

LABEL = "held-out"
MAX_BYTES = 1 << 30
WINDOW = 1024
MAX_SAMPLES = 64
MIN_LEN = 64
BYTES = 256
TARGET = "target"
_MEND = "mend it, or remove it, and export again"


@dataclass(frozen=True)
class HeldoutSettings:
    """``heldout.json``: what is predicted in the data beside it.

    Attributes:
        objective: ``causal``: every token from those before it; ``masked``: hidden tokens from all others; ``none``:
            what should be predicted is not known, or stands in the data as ``target``.
        tokenizer: ``bytes``: the file is text, and its bytes are the tokens; ``ids``: the file holds token ids;
            ``arrays``: it holds the model's inputs by name.
        seq_len: Length of a sample.
        seed: Of masked models: decides which tokens are hidden.
        mask_token_id: Of masked models: the token that stands for a hidden one.
        mask_fraction: Of masked models: the share of tokens that are hidden.
    """

    objective: Literal["causal", "masked", "none"]
    tokenizer: Literal["bytes", "ids", "arrays"]
    seq_len: int
    seed: int = 0
    mask_token_id: int | None = None
    mask_fraction: float | None = None

    def __post_init__(self) -> None:
        """Check that samples can be cut and tokens be hidden."""
        shortest = 2 if self.objective == "causal" else 1
        if self.seq_len < shortest:
            raise ValueError(f"seq_len is {self.seq_len}, wanted {shortest} or more")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, wanted 0 or more")
        if self.objective != "none" and self.tokenizer == "arrays":
            raise ValueError(f"objective is {self.objective!r} for arrays, wanted 'none': only tokens have one")
        if self.objective == "masked":
            if self.mask_token_id is None or self.mask_token_id < 0:
                raise ValueError(f"mask_token_id is {self.mask_token_id}, wanted the id of a token")
            if self.mask_fraction is None or not 0 < self.mask_fraction <= 1:
                raise ValueError(f"mask_fraction is {self.mask_fraction}, wanted a share above 0 and up to 1")

    def to_json(self) -> str:
        """Return the text of ``heldout.json``."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


@dataclass(frozen=True)
class Heldout:
    """Held-out data, cut into samples.

    Attributes:
        path: The file.
        label: What reports call it: ``held-out text``, ``held-out data``, or the name of a file.
        sha256: Hash of the file.
        settings: How it was read.
        source: All that the models see, to cut other lengths from.
        samples: Pieces of one length, one row each, and what should be predicted from them.
    """

    path: Path
    label: str
    sha256: str
    settings: HeldoutSettings
    source: RecordedSource
    samples: tuple[Sample, ...]

    @property
    def seq_len(self) -> int:
        """Length of the samples."""
        return self.settings.seq_len

    @property
    def file_name(self) -> str:
        """What the file is called in a bundle or checkpoint folder."""
        return HELDOUT_FILES[0] if self.settings.tokenizer == "bytes" else f"heldout{self.path.suffix}"


def load_heldout(folder: Path, interface: Interface, error: type[FlashExportError]) -> Heldout | None:
    """Read the held-out data of a bundle or checkpoint; None when it has none.

    Args:
        folder: The bundle or checkpoint.
        interface: Of its model.
        error: What is raised.

    Raises:
        FlashExportError: ``error``: the settings are damaged, the data is missing, does not fit the model or is shorter
            than one sample.
    """
    path = folder / SETTINGS_FILE
    if not path.exists():
        return None
    settings = read_record(path, HeldoutSettings, error, _MEND)
    data = find_data_file(folder)
    if data is None:
        raise error(f"{folder} has {SETTINGS_FILE} but none of {', '.join(HELDOUT_FILES)}; add it or remove both")
    label = f"{LABEL} text" if settings.tokenizer == "bytes" else f"{LABEL} data"
    return _read(data, label, settings, interface, error, _MEND)


def open_heldout(bundle: Bundle, path: Path | None = None) -> Heldout | None:
    """Return a file that a user gave, or else the held-out data of a bundle, if it has any.

    Raises:
        InputError: The file cannot be used.
        BundleError: The held-out data of the bundle is damaged.
    """
    interface = bundle.manifest.interface
    if path is None:
        return load_heldout(bundle.path, interface, BundleError)
    return read_data(path, interface, bundle.get_graph().axes[SEQ].max)


def load_data(bundle: Bundle, path: Path | None = None) -> Data:
    """Return all that there is to feed a bundle with; arguments and errors are those of :func:`open_heldout`."""
    heldout = open_heldout(bundle, path)
    return Data(RandomSource(bundle.manifest.interface), None if heldout is None else heldout.source)


def find_data_file(folder: Path) -> Path | None:
    """Return the file that held-out data is in; None if there is none."""
    return next((folder / name for name in HELDOUT_FILES if (folder / name).exists()), None)


def read_data(path: Path, interface: Interface, longest: int) -> Heldout:
    """Read a file that a user gives as data.

    Causal models predict the next token; what others should predict, a file of tokens does not tell.

    Args:
        path: Text for models of bytes; token ids as ``.npy`` or ``.npz``; or inputs by name as ``.npz``.
        interface: Of the model.
        longest: Longest sequence that the graph takes.

    Raises:
        InputError: The file cannot be read, is not for this model, or is too short.
    """
    cure = "give text (for models of bytes), token ids as .npy, or arrays by the model's input names as .npz"
    vocab_size = interface.vocab_size
    objective: Literal["causal", "none"] = "causal" if vocab_size is not None and interface.is_causal else "none"
    if vocab_size is None:
        tokenizer: Literal["bytes", "ids", "arrays"] = "arrays"
    else:
        tokenizer = "ids" if path.suffix in (".npy", ".npz") else "bytes"
    if tokenizer == "bytes" and (vocab_size or 0) < BYTES:
        raise InputError(f"{path} is text, but the model has {vocab_size} tokens, not bytes; give token ids as .npy")
    settings = HeldoutSettings(objective, tokenizer, max(min(WINDOW, longest), 2 if objective == "causal" else 1))
    return _read(path, path.name, settings, interface, InputError, cure, is_whole=False)


def _read(
    path: Path,
    label: str,
    settings: HeldoutSettings,
    interface: Interface,
    error: type[FlashExportError],
    cure: str,
    *,
    is_whole: bool = True,
) -> Heldout:
    """Read a file by its settings; unless it is to be read whole, a short one gives a short sample, a long one some."""
    content = read_bytes(path, error, cure, max_bytes=MAX_BYTES)
    try:
        rows, target = _parse(content, settings, interface)
        if not is_whole:
            settings = _shorten(settings, rows)
        samples = _cut_samples(rows, target, settings)
    except ValueError as mismatch:
        raise error(f"{path} cannot be used ({mismatch}); {cure}") from mismatch
    seen = _join_tokens(samples) if settings.tokenizer != "arrays" else rows
    chosen = samples if is_whole else samples[:MAX_SAMPLES]
    source = RecordedSource(interface, label, seen)
    return Heldout(path, label, hashlib.sha256(content).hexdigest(), settings, source, tuple(chosen))


def _parse(content: bytes, settings: HeldoutSettings, interface: Interface) -> tuple[Batch, np.ndarray | None]:
    if settings.tokenizer == "arrays":
        return _check_arrays(parse_arrays(content), interface)
    return _check_tokens(_parse_tokens(content, settings), interface), None


def _shorten(settings: HeldoutSettings, rows: Batch) -> HeldoutSettings:
    """Return settings whose samples are no longer than the data."""
    if rows.interface.fixed_len is None and rows.seq_len < MIN_LEN:
        raise ValueError(f"it has {rows.seq_len} {rows.interface.unit}, wanted at least {MIN_LEN}")
    return dataclasses.replace(settings, seq_len=min(settings.seq_len, rows.seq_len))


def _parse_tokens(content: bytes, settings: HeldoutSettings) -> np.ndarray:
    """Return the tokens of a file in one row."""
    if settings.tokenizer == "bytes":
        if content.startswith(ARCHIVES):
            raise ValueError("it is an archive, not text")
        return np.frombuffer(content, np.uint8)
    arrays = list(parse_arrays(content).values())
    if len(arrays) != 1:
        raise ValueError(f"it has {len(arrays)} arrays, wanted one of token ids")
    return arrays[0].ravel()


def _check_tokens(tokens: np.ndarray, interface: Interface) -> Batch:
    (spec,) = interface.inputs
    vocab_size = interface.vocab_size or 0
    if not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"it holds {tokens.dtype}, wanted whole numbers, the token ids")
    if not tokens.size:
        raise ValueError("it has no tokens")
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise ValueError(f"it has token ids from {tokens.min()} to {tokens.max()}, wanted 0 to {vocab_size - 1}")
    return Batch.full(interface, {spec.name: tokens[None].astype(np.int64)})


def _check_arrays(arrays: Mapping[str, np.ndarray], interface: Interface) -> tuple[Batch, np.ndarray | None]:
    names = [spec.name for spec in interface.inputs]
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(f"it lacks {', '.join(missing)}, wanted {', '.join(names)} and, if it is known, {TARGET}")
    if unknown := sorted(arrays.keys() - {*names, TARGET}):
        raise ValueError(f"it has {', '.join(unknown)}, wanted {', '.join(names)} and, if it is known, {TARGET}")
    sizes: dict[str, int] = {}
    for spec in interface.inputs:
        values = arrays[spec.name]
        found = dict(zip(spec.shape, values.shape, strict=False))
        fixed = [size for size in spec.shape if isinstance(size, int) and found.get(size) != size]
        if values.ndim != len(spec.shape) or fixed or not values.size:
            wanted = ", ".join(map(str, spec.shape))
            raise ValueError(f"{spec.name} has shape {values.shape}, wanted ({wanted})")
        for axis in (BATCH, SEQ):
            if axis in spec.shape and sizes.setdefault(axis, found[axis]) != found[axis]:
                raise ValueError(f"{spec.name} has {axis} {found[axis]}, another input {sizes[axis]}")
        if not np.issubdtype(values.dtype, np.number) or not np.isfinite(values).all():
            raise ValueError(f"{spec.name} has values of {values.dtype} that are no finite numbers")
    inputs = {spec.name: arrays[spec.name].astype(spec.dtype) for spec in interface.inputs}
    batch, target = Batch.full(interface, inputs), arrays.get(TARGET)
    if batch.seq_len < interface.min_len:
        raise ValueError(f"it has {batch.seq_len} {interface.unit}, wanted at least {interface.min_len}")
    if target is not None and len(target) != batch.size:
        raise ValueError(f"{TARGET} has {len(target)} rows, the inputs {batch.size}")
    return batch, target


def _cut_samples(rows: Batch, target: np.ndarray | None, settings: HeldoutSettings) -> list[Sample]:
    """Return samples of one length that follow each other; what is left at the end of a row is dropped."""
    seq_len, interface = settings.seq_len, rows.interface
    if interface.fixed_len is not None:
        seq_len = interface.fixed_len
    if target is not None and seq_len != rows.seq_len:
        raise ValueError(f"seq_len is {seq_len}, wanted {rows.seq_len}, the whole row, because it has a {TARGET}")
    count = rows.size * (rows.seq_len // seq_len)
    if not count:
        raise ValueError(f"{rows.seq_len} {interface.unit} do not fill one sample of seq_len={seq_len}")
    pieces = RecordedSource(interface, LABEL, rows).list_pieces(count, seq_len)
    if settings.objective == "none":
        targets = [None] * count if target is None else [target[row : row + 1] for row in range(count)]
        return [Sample(piece, None, wanted) for piece, wanted in zip(pieces, targets, strict=True)]
    (spec,) = interface.inputs
    tokens = np.concatenate([piece.arrays[spec.name] for piece in pieces])
    if settings.objective == "causal":
        compared = np.ones((1, seq_len), dtype=bool)
        compared[:, -1] = False
        return [Sample(piece, compared, row[1:]) for piece, row in zip(pieces, tokens, strict=True)]
    assert settings.mask_fraction is not None and settings.mask_token_id is not None  # noqa: PT018 (see __post_init__)
    hidden = np.random.default_rng(settings.seed).random(tokens.shape) < settings.mask_fraction
    if not hidden.any():
        raise ValueError(f"mask_fraction={settings.mask_fraction} hides none of {tokens.size} tokens")
    seen = np.where(hidden, settings.mask_token_id, tokens)
    return [
        Sample(Batch.full(interface, {spec.name: seen[row : row + 1]}), hidden[row : row + 1], tokens[row][hidden[row]])
        for row in range(len(tokens))
    ]


def _join_tokens(samples: list[Sample]) -> Batch:
    """Return what a model sees of all samples, in one row."""
    interface = samples[0].batch.interface
    (spec,) = interface.inputs
    return Batch.full(interface, {spec.name: np.concatenate([one.batch.arrays[spec.name] for one in samples], axis=1)})
