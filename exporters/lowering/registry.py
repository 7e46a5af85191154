"""Which lowering belongs to which model family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.config import DEFAULT_OPSET
from flash_export.exporters.lowering.bigbird import BIGBIRD
from flash_export.exporters.lowering.flash_graphs import FLASH
from flash_export.exporters.lowering.flash_quad import FLASH_QUAD
from flash_export.exporters.lowering.gau import GAU
from flash_export.exporters.lowering.gau_alpha import GAU_ALPHA
from flash_export.exporters.lowering.linformer import LINFORMER
from flash_export.exporters.lowering.longformer import LONGFORMER
from flash_export.exporters.lowering.mc_tfm import MC_TFM
from flash_export.exporters.lowering.mossformer2 import MOSSFORMER2
from flash_export.exporters.lowering.performer import PERFORMER
from flash_export.exporters.lowering.precision import FP32
from flash_export.exporters.lowering.rtmpose_gau import RTMPOSE_GAU
from flash_export.exporters.lowering.transformer_state import TRANSFORMER

if TYPE_CHECKING:
    from flash_export.exporters.lowering.base import LoweredModel, Lowering
    from flash_export.exporters.lowering.precision import Precision
    from flash_export.models.base import ReferenceModel

LOWERINGS: dict[str, Lowering] = {
    "flash": FLASH,
    "gau": GAU,
    "rtmpose_gau": RTMPOSE_GAU,
    "gau_alpha": GAU_ALPHA,
    "flash_quad": FLASH_QUAD,
    "mossformer2": MOSSFORMER2,
    "transformer": TRANSFORMER,
    "mc_tfm": MC_TFM,
    "performer": PERFORMER,
    "linformer": LINFORMER,
    "longformer": LONGFORMER,
    "bigbird": BIGBIRD,
}


def lower_model(model: ReferenceModel, precision: Precision = FP32, opset: int = DEFAULT_OPSET) -> LoweredModel:
    """Return the export form of a reference model, in evaluation mode and without gradients.

    Args:
        model: The reference model.
        precision: What is computed in half precision.
        opset: Opset of the graphs, which has one operator for more or less.
    """
    lowering = LOWERINGS[model.config.model_type]
    lowered = lowering.model(model, precision)
    if lowering.fuse_attention is not None and lowering.fuses_attention(opset):
        lowering.fuse_attention(lowered)
    return lowered.requires_grad_(requires_grad=False).eval()
