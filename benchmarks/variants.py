"""The same model in every precision: each a bundle of its own, or the reason why there is none."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flash_export.config import SCHEMES, ExportOptions, QuantizeOptions
from flash_export.errors import FlashExportError
from flash_export.exporters.export import export_onnx
from flash_export.quantization.quantize import quantize_bundle
from flash_export.validators.cells import describe_exception

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle

FP32 = "fp32"
EXPORTED = (FP32, "fp16", "bf16")
PRECISIONS = (*EXPORTED, *SCHEMES)
CALIBRATED = QuantizeOptions()  # with the held-out text of the bundle


def make_variants(
    source: Path, folder: Path, precisions: Sequence[str], *, quantization: QuantizeOptions = CALIBRATED, **foreign: Any
) -> tuple[dict[str, Bundle], dict[str, str]]:
    """Export a model in fp32 and half precision, and quantize the fp32 bundle.

    Args:
        source: The checkpoint.
        folder: Where the bundles are put, under the names of their precisions.
        precisions: Which of them; fp32 is always made.
        quantization: How, but for the scheme.
        foreign: What a foreign checkpoint needs, see :func:`export_onnx`.

    Returns:
        The bundles by precision, fp32 first, and why the others could not be made.
    """
    bundles = {FP32: export_onnx(source, folder / FP32, **foreign)}
    reasons = {}
    for name in precisions:
        if name == FP32:
            continue
        found = _make(name, source, folder / name, bundles[FP32], quantization, foreign)
        if isinstance(found, str):
            reasons[name] = found
        else:
            bundles[name] = found
    return bundles, reasons


def _make(
    name: str, source: Path, output: Path, fp32: Bundle, options: QuantizeOptions, foreign: Mapping[str, Any]
) -> Bundle | str:
    try:
        if name in SCHEMES:
            return quantize_bundle(fp32, output, options=replace(options, scheme=name))
        return export_onnx(source, output, options=ExportOptions(precision=name), **foreign)
    except FlashExportError as error:
        return describe_exception(error, output.parent)
