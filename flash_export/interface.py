"""What a model takes, gives and promises: tensors with named axes, what they hold, and what padding does to them.

Everything that is not a model family asks here: no validator, runner, exporter or report knows a tensor by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from flash_export.typed_json import show

MAX_SIZE = 2**31 - 1  # of an axis: what TensorRT and onnxruntime count with
DEFAULT_CHUNK_SIZE = 128
# The names that numpy, and ml_dtypes beside it, give the types of ONNX and TensorRT.
DTYPES = (
    *("bool", "int4", "int8", "int16", "int32", "int64", "uint4", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"),
)
# Names of the axes that may have any size. ``seq`` may stand on any axis of a tensor, or on none.
BATCH, SEQ = "batch", "seq"
# Of the states of graphs that look back at every token: how many tokens there is room for.
PAST = "past"

Padding = Literal["exact", "counted", "refused"]


@dataclass(frozen=True)
class TokenIds:
    """Token ids of a vocabulary: whole numbers from 0 to below ``vocab_size``."""

    vocab_size: int
    kind: Literal["token ids"] = "token ids"

    def __post_init__(self) -> None:
        """Check that there is a token."""
        if not 1 <= self.vocab_size <= MAX_SIZE:
            raise ValueError(f"vocab_size is {self.vocab_size}, wanted 1 to {MAX_SIZE}")


@dataclass(frozen=True)
class Mask:
    """1 for what is real, 0 for padding on the right."""

    kind: Literal["mask"] = "mask"


@dataclass(frozen=True)
class Lengths:
    """How much of each row is real: whole numbers from ``min`` to ``max``, a size or the name of an axis."""

    max: int | str
    min: int = 1
    kind: Literal["lengths"] = "lengths"


@dataclass(frozen=True)
class Positions:
    """How many tokens of each row came before: whole numbers from 0 on, in multiples of ``step``."""

    step: int = 1
    kind: Literal["positions"] = "positions"

    def __post_init__(self) -> None:
        """Check the step."""
        if not 1 <= self.step <= MAX_SIZE:
            raise ValueError(f"step is {self.step}, wanted 1 to {MAX_SIZE}")


@dataclass(frozen=True)
class Features:
    """Real numbers; ``scale`` is their standard deviation in use, with which random ones are drawn."""

    scale: float = 1.0
    kind: Literal["features"] = "features"

    def __post_init__(self) -> None:
        """Check the scale."""
        _check_positive("scale", self.scale)


@dataclass(frozen=True)
class Waveform:
    """Sound: samples at ``sample_rate`` a second; ``scale`` is their root mean square in use, 1 being full scale."""

    sample_rate: int
    scale: float = 0.1
    kind: Literal["waveform"] = "waveform"

    def __post_init__(self) -> None:
        """Check rate and scale."""
        _check_positive("sample_rate", self.sample_rate)
        _check_positive("scale", self.scale)


@dataclass(frozen=True)
class Logits:
    """Unnormalised logarithms of probabilities, over the last axis."""

    kind: Literal["token logits"] = "token logits"


@dataclass(frozen=True)
class Bins:
    """Scores of positions along an image axis, over the last axis: ``per_pixel`` of them a pixel (SimCC)."""

    per_pixel: float
    kind: Literal["bins"] = "bins"

    def __post_init__(self) -> None:
        """Check that bins have a width."""
        _check_positive("per_pixel", self.per_pixel)


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}, wanted a finite number above 0")


Content = TokenIds | Mask | Lengths | Positions | Features | Waveform | Logits | Bins


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph.

    Attributes:
        name: Name in the graph.
        dtype: Numpy name of the dtype.
        shape: Sizes; those that may be any are the names of their axes.
        content: What it holds; None for what only the graphs know of, such as a carried state.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    content: Content | None = None

    def __post_init__(self) -> None:
        """Check that it can be a tensor of a graph."""
        if self.dtype not in DTYPES:
            raise ValueError(f"{self.name} has the unknown dtype {show(self.dtype)}")
        if not self.shape:
            raise ValueError(f"{self.name} has an empty shape, wanted one axis at least")
        for size in self.shape:
            if isinstance(size, int) and not 1 <= size <= MAX_SIZE:
                raise ValueError(f"{self.name} has an axis of size {size}, wanted 1 to {MAX_SIZE}")

    def find_axis(self, name: str) -> int | None:
        """Return the index of a named axis; None if the tensor has none."""
        return self.shape.index(name) if name in self.shape else None


@dataclass(frozen=True)
class Interface:
    """What a model takes and gives.

    Attributes:
        inputs: What it needs, each with ``batch`` on some axis.
        outputs: What it returns, in order.
        task: Name of the task: what the outputs are good for.
        unit: What the length counts, in the plural: ``tokens``, ``frames``, ``samples``, ``keypoints``.
        padding: ``exact``: a row that is padded on the right and masked gives what it gives alone; ``counted``: the
            mask is obeyed, but the padding counts in a divisor, as in the library that the weights come from;
            ``refused``: statistics go over the whole axis, so that all rows of a batch have the same true length.
        mask: The input that says what is padding; None where padding is refused.
        needs_mask: Whether padding on the right changes the answer unless it is masked.
        is_causal: Whether nothing depends on what comes later.
        window: Frames that sequences are padded to a multiple of inside the model; 1 if they are not.
        min_len: Shortest length that the model takes.
        max_len: Longest length that the model takes; None: any.
        fixed_len: The one length that it has, where no axis of an input is ``seq``; None: any.
        frame_len: Units of a frame, where the model cuts a sequence into such; 1: each unit is a frame.
        frame_hop: Units from the start of a frame to that of the next. What is left at the end belongs to none.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    task: str
    unit: str = "tokens"
    padding: Padding = "exact"
    mask: TensorSpec | None = None
    needs_mask: bool = False
    is_causal: bool = False
    window: int = 1
    min_len: int = 1
    max_len: int | None = None
    fixed_len: int | None = None
    frame_len: int = 1
    frame_hop: int = 1

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        names = [spec.name for spec in (*self.inputs, *self.outputs)] + ([self.mask.name] if self.mask else [])
        if len(set(names)) < len(names):
            raise ValueError(f"the interface names {', '.join(names)}; give every tensor a name of its own")
        if (self.mask is None) != (self.padding == "refused"):
            raise ValueError(
                f"padding={self.padding} does not go with mask={self.mask}; refused padding alone has none"
            )
        if (self.fixed_len is None) != any(SEQ in spec.shape for spec in self.inputs):
            raise ValueError("an interface has either an input with the axis seq, or one fixed length")
        for spec in (*self.inputs, *self.outputs):
            axes = [size for size in spec.shape if isinstance(size, str)]
            if BATCH not in axes or len(set(axes)) < len(axes) or set(axes) - {BATCH, SEQ}:
                raise ValueError(
                    f"{spec.name} has the axes {show(spec.shape)}, wanted one {BATCH} and at most one {SEQ}"
                )
        if not self.inputs or not self.outputs:
            raise ValueError("inputs or outputs is empty, wanted one at least of each")
        for name in ("window", "min_len", "max_len", "fixed_len", "frame_len", "frame_hop"):
            size = getattr(self, name)
            if size is not None and not 1 <= size <= MAX_SIZE:
                raise ValueError(f"{name} is {size}, wanted 1 to {MAX_SIZE}")
        if self.max_len is not None and self.max_len < self.min_len:
            raise ValueError(f"max_len is {self.max_len}, wanted at least min_len, {self.min_len}")
        if self.min_len < self.frame_len:
            raise ValueError(f"min_len is {self.min_len}, wanted at least the frame_len of {self.frame_len}")

    def count_frames(self, seq_len: int) -> int:
        """Return how many frames a sequence has."""
        return (seq_len - self.frame_len) // self.frame_hop + 1

    def find_length(self, num_frames: int) -> int:
        """Return the shortest length of so many frames."""
        return self.frame_len + (num_frames - 1) * self.frame_hop

    @property
    def chunk_frames(self) -> int:
        """Frames of a chunk; for a model without chunks, what lengths are tried around and engines tuned to."""
        return self.window if self.window > 1 else DEFAULT_CHUNK_SIZE

    @property
    def chunk_size(self) -> int:
        """Units from the start of a chunk to that of the next."""
        return self.chunk_frames * self.frame_hop

    @property
    def vocab_size(self) -> int | None:
        """Size of the vocabulary; None for a model that takes no tokens."""
        contents = (spec.content for spec in self.inputs)
        return next((content.vocab_size for content in contents if isinstance(content, TokenIds)), None)
