"""The data that a bundle is quantized by: held-out data, a file, or random inputs where they are enough."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.data.heldout import WINDOW, open_heldout
from flash_export.data.samples import Sample
from flash_export.data.sources import RandomSource
from flash_export.errors import InputError
from flash_export.quantization.loss import ESTIMATE_SAMPLES

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle
    from flash_export.data.batch import Batch
    from flash_export.interface import Interface


@dataclass(frozen=True)
class Calibration:
    """What products are measured on, and what variants are judged by.

    Attributes:
        label: What reports call it.
        sha256: Hash of the file, or of what was drawn.
        samples: Pieces, and what should be predicted from them where that is known.
        rows: All that there is, to cut other lengths from; None of random inputs.
    """

    label: str
    sha256: str
    samples: tuple[Sample, ...]
    rows: Batch | None = None


def read_calibration(bundle: Bundle, path: Path | None, longest: int, *, may_draw: bool) -> Calibration:
    """Return the data of a file, or the bundle's own.

    Args:
        bundle: The fp32 bundle.
        path: The file; None: the held-out data of the bundle.
        longest: Longest sequence that the graph takes.
        may_draw: Whether random inputs are good enough where there is no data.

    Raises:
        InputError: There is none, it cannot be used, or its samples are longer than the graph takes.
        BundleError: The held-out data is damaged.
    """
    data, interface = open_heldout(bundle, path), bundle.manifest.interface
    if data is None and may_draw:
        return draw_calibration(interface, longest)
    if data is None:
        raise InputError(
            f"{bundle.path} has no held-out data to calibrate with; give data that the model would see in use with "
            "--data FILE"
        )
    if data.seq_len > longest:
        raise InputError(
            f"the samples of the held-out data have {data.seq_len} {interface.unit}, the graph takes {longest}; export "
            "it with a larger --max-seq-len"
        )
    return Calibration(data.label, data.sha256, data.samples, data.source.rows)


def draw_calibration(interface: Interface, longest: int) -> Calibration:
    """Return random inputs, the same ones for the same model: variants can be held against fp32 on them, no more."""
    source = RandomSource(interface)
    seq_len = interface.fixed_len or max(min(WINDOW, longest), interface.min_len)
    samples = tuple(Sample(source.draw(1, seq_len, seed=seed)) for seed in range(ESTIMATE_SAMPLES))
    content = b"".join(array.tobytes() for sample in samples for array in sample.batch.arrays.values())
    return Calibration(source.label, hashlib.sha256(content).hexdigest(), samples)
