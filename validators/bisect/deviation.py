"""How far two readings of one quantity are apart, and where.

Axes: b batch, n sequence, g chunk, c position in a chunk, s query/key width, e hidden width, w any width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool

    from flash_export.probes import Kind, Quantity


@dataclass(frozen=True)
class Deviation:
    """The difference of two arrays where they are compared.

    Attributes:
        error: Largest difference as a fraction of the largest expected magnitude, or itself where nothing but zeros
            is expected; infinite if a value is not finite.
        relative: The difference of each entry in the same unit; 0 where nothing is compared.
        factor: The one number that, times the expected array, comes closest; None if nothing does.
        residual: What then remains, in the same unit.
    """

    error: float
    relative: np.ndarray
    factor: float | None
    residual: float

    @property
    def is_finite(self) -> bool:
        """Whether all values that are compared are finite."""
        return math.isfinite(self.error)


def build_region(quantity: Quantity, shape: tuple[int, ...], valid: Bool[np.ndarray, "b n"]) -> np.ndarray:
    """Return which entries are compared, as a bool array that broadcasts: what belongs to padding is anyone's.

    Args:
        quantity: What the array is.
        shape: Its shape: tokens ``(b, n, w)``, pairs ``(b, n, n)`` or ``(b, g, c, c)``, sums ``(b, g, s, e)``,
            slots ``(b, c, w)``.
        valid: True for real tokens.
    """
    if quantity.kind in ("sums", "slots") or quantity.is_zero_in_padding:
        return np.ones((1,) * len(shape), dtype=bool)
    if quantity.kind == "tokens":
        return valid[..., None]
    if len(shape) == 4:
        padding = shape[1] * shape[2] - valid.shape[1]
        valid = np.pad(valid, ((0, 0), (0, padding))).reshape(shape[:3])
    return valid[..., :, None] & valid[..., None, :]


def measure_deviation(expected: np.ndarray, actual: np.ndarray, region: np.ndarray) -> Deviation:
    """Compare two arrays of one shape in fp64."""
    expected, actual = np.where(region, expected, 0.0), np.where(region, actual, 0.0)
    scale = float(np.abs(expected).max(initial=0.0)) or 1.0
    with np.errstate(invalid="ignore", over="ignore"):
        relative = np.abs(actual - expected) / scale
    finite = np.isfinite(relative)
    if not finite.all():
        return Deviation(math.inf, np.where(finite, 0.0, math.inf), None, math.inf)
    power = float((expected * expected).sum())
    factor = float((actual * expected).sum()) / power if power else None
    residual = np.abs(actual - (factor or 0.0) * expected).max(initial=0.0) / scale
    return Deviation(float(relative.max(initial=0.0)), relative, factor, float(residual))


def describe_deviation(deviation: Deviation, kind: Kind, limit: float) -> str:
    """Say which entries are off and whether one factor explains it; empty if nothing stands out."""
    bad = deviation.relative > limit
    parts = [_describe_rows(bad), _describe_places(bad, kind), _describe_channels(bad, kind)]
    if deviation.factor is not None and deviation.residual <= limit < abs(deviation.factor - 1):
        parts = [f"{deviation.factor:.4g} times the reference"]
    return ", ".join(part for part in parts if part)


def _describe_rows(bad: np.ndarray) -> str:
    rows = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))
    return f"row {rows[0]} of the batch alone" if len(rows) == 1 < len(bad) else ""


def _describe_places(bad: np.ndarray, kind: Kind) -> str:
    """Say which tokens, pairs or chunks are off."""
    if kind == "pairs":
        share, first = bad.mean(), np.argwhere(bad)[0]
        return f"{100 * share:.2g}% of the pairs, the first being query {first[-2]} and key {first[-1]}"
    name = {"tokens": "token", "slots": "slot"}.get(kind, "chunk")
    places = np.asarray(bad.any(axis=(0, *range(2, bad.ndim))))
    first, count = int(np.argmax(places)), int(places.sum())
    if count == len(places):
        return ""
    if places[first:].all():
        return f"{name} {first} alone" if count == 1 else f"from {name} {first} on"
    return f"{name} {first} alone" if count == 1 else f"{count} of {len(places)} {name}s, the first being {first}"


def _describe_channels(bad: np.ndarray, kind: Kind) -> str:
    if kind == "pairs":
        return ""
    texts = []
    names = ("key channel", "value channel") if kind == "sums" else ("channel",)
    for axis, name in zip(range(bad.ndim - len(names), bad.ndim), names, strict=True):
        channels = np.asarray(bad.any(axis=tuple(other for other in range(bad.ndim) if other != axis)))
        count = int(channels.sum())
        if count == 1:
            texts.append(f"{name} {int(np.argmax(channels))} alone")
        elif count < len(channels):
            texts.append(f"{count} of {len(channels)} {name}s")
    return ", ".join(texts)
