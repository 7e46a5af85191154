"""Which lowering belongs to which model family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flash_export.exporters.lowering.flash import LoweredFlash
from flash_export.exporters.lowering.gau import LoweredGau
from flash_export.exporters.lowering.precision import FP32

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from flash_export.exporters.lowering.precision import Precision
    from flash_export.models.base import ReferenceModel

LOWERINGS: dict[str, Callable[[Any, Precision], nn.Module]] = {"flash": LoweredFlash, "gau": LoweredGau}


def lower_model(model: ReferenceModel, precision: Precision = FP32) -> nn.Module:
    """Return the export form of a reference model in a precision, in evaluation mode and without gradients."""
    return LOWERINGS[model.config.model_type](model, precision).requires_grad_(requires_grad=False).eval()
