"""What a model reads to be calibrated and judged: held-out text, a file of text, or token ids."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib import format as npy

from flash_export.config import HELDOUT
from flash_export.errors import InputError, describe_reason
from flash_export.files import hash_file
from flash_export.heldout import Heldout
from flash_export.reading import read_bytes
from flash_export.structure import show
from flash_export.suggest import list_known

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

    from flash_export.bundle import Bundle

BYTES = 256
WINDOW = 1024
MAX_WINDOWS = 64
MIN_TOKENS = 64
MAX_CALIBRATION_BYTES = 1 << 30
# The first bytes of .zip, and so of .npz; of .gz, .npy and .xz.
_ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"\x93NUMPY", b"\xfd7zXZ")


@dataclass(frozen=True)
class Window:
    """A piece of text, and what is predicted in it.

    Attributes:
        input_ids: What the model sees, ``(1, seq)``.
        predictors: Positions whose predictions count.
        targets: What they should have predicted; None where that is not known.
    """

    input_ids: Int[np.ndarray, "1 seq"]
    predictors: Int[np.ndarray, " n"]
    targets: Int[np.ndarray, " n"] | None


@dataclass(frozen=True)
class CalibrationText:
    """Text to calibrate with and to judge by.

    Attributes:
        source: ``held-out text``, or the name of the file.
        sha256: Hash of the file that it comes from.
        windows: The text, in pieces.
    """

    source: str
    sha256: str
    windows: tuple[Window, ...]

    @property
    def tokens(self) -> Int[np.ndarray, " n"]:
        """All that the model may see, in one piece."""
        return np.concatenate([window.input_ids[0] for window in self.windows])

    @classmethod
    def load(cls, bundle: Bundle, calibration: str, longest: int) -> CalibrationText:
        """Read the text that the options name.

        Args:
            bundle: Whose held-out text and vocabulary count.
            calibration: ``heldout`` or a file.
            longest: Longest sequence that the graph takes.

        Raises:
            InputError: There is no such text, it is too short, or it is not for this vocabulary.
            BundleError: The held-out text is damaged.
        """
        if calibration == HELDOUT:
            heldout = Heldout.load(bundle.path)
            if heldout is None:
                raise InputError(
                    f"{bundle.path} has no held-out text to calibrate with; give text or token ids that the model "
                    "would see in use with --calibration FILE"
                )
            if heldout.tokens.shape[1] > longest:
                raise InputError(
                    f"the windows of the held-out text have {heldout.tokens.shape[1]} tokens, the graph {longest}; "
                    "export it with a larger --max-seq-len"
                )
            return cls("held-out text", hash_file(bundle.path / "heldout.txt"), _list_heldout_windows(heldout))
        path = Path(calibration)
        config = bundle.read_config()
        tokens = _read_tokens(path, int(config["vocab_size"]))
        seq_len = min(WINDOW, longest, len(tokens))
        windows = tuple(
            _make_window(tokens[start : start + seq_len], bool(config.get("causal")))
            for start in range(0, len(tokens) - seq_len + 1, seq_len)
        )
        return cls(path.name, hash_file(path), windows[:MAX_WINDOWS])


def _list_heldout_windows(heldout: Heldout) -> tuple[Window, ...]:
    def make(tokens: np.ndarray, seen: np.ndarray, targets: Bool[np.ndarray, " seq"]) -> Window:
        positions = np.flatnonzero(targets)
        return Window(seen[None], positions - 1 if heldout.causal else positions, tokens[positions])

    return tuple(map(make, heldout.tokens, heldout.inputs, heldout.targets))


def _make_window(tokens: Int[np.ndarray, " seq"], is_causal: bool) -> Window:
    """A causal model predicts the next token; what another one would predict, a file does not tell."""
    if is_causal:
        return Window(tokens[None], np.arange(len(tokens) - 1), tokens[1:])
    return Window(tokens[None], np.arange(len(tokens)), None)


def _read_tokens(path: Path, vocab_size: int) -> Int[np.ndarray, " n"]:
    cure = f"give text, token ids as .npy, or {list_known(path, (HELDOUT,))}"
    if path.suffix == ".npy":
        tokens = _read_array(path, cure)
    elif vocab_size < BYTES:
        raise InputError(f"{path} is text, but the model has {vocab_size} tokens, not bytes; give token ids as .npy")
    else:
        text = read_bytes(path, InputError, cure, max_bytes=MAX_CALIBRATION_BYTES)
        if text.startswith(_ARCHIVES):
            raise InputError(f"{path} is an archive or an array, not text; {cure}")
        tokens = np.frombuffer(text, np.uint8)
    if not np.issubdtype(tokens.dtype, np.integer):
        raise InputError(f"{path} holds {tokens.dtype}; give whole numbers, the token ids")
    if len(tokens) < MIN_TOKENS:
        raise InputError(f"{path} has {len(tokens)} tokens; give at least {MIN_TOKENS}, better some ten thousand")
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise InputError(
            f"{path} has token ids from {tokens.min()} to {tokens.max()}, the model has {vocab_size} tokens; give ids "
            "of its own tokenizer"
        )
    return tokens.astype(np.int64)


def _read_array(path: Path, cure: str) -> np.ndarray:
    """Read a ``.npy`` that has as many bytes as its header says: numpy would allocate first, whatever that is."""
    content = io.BytesIO(read_bytes(path, InputError, cure, max_bytes=MAX_CALIBRATION_BYTES))
    try:
        is_first = npy.read_magic(content) == (1, 0)
        shape, is_fortran, dtype = (npy.read_array_header_1_0 if is_first else npy.read_array_header_2_0)(content)
    except Exception as error:  # numpy evaluates the header as Python's literals: anything may be in it
        raise InputError(f"{path} cannot be read as .npy ({describe_reason(error)}); {cure}") from error
    data = content.read()
    if dtype.hasobject or min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != len(data):
        raise InputError(f"{path} should hold {dtype} {show(shape)}, but has {len(data):,} bytes of them; {cure}")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C").ravel()
