"""Which variant of a lowered model is written: in fp32, in half precision, or quantized."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from flash_export.bundle.bundle import QUANTIZATION_FILE
from flash_export.exporters.islands import choose_islands
from flash_export.exporters.lowering.precision import FP32
from flash_export.exporters.lowering.shared_modules import join_projections
from flash_export.exporters.quantization.rewrite import quantize_graph

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx_ir as ir

    from flash_export.bundle.manifest import PrecisionFacts
    from flash_export.config import ExportOptions
    from flash_export.data.sources import Data
    from flash_export.exporters.lowering.base import LoweredModel
    from flash_export.exporters.lowering.precision import Precision
    from flash_export.exporters.quantization.recipe import Quantization
    from flash_export.exporters.tracing import TracedGraph
    from flash_export.models.base import ReferenceModel


def _leave(_: object) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Variant:
    """What is done to a lowered model and its traced graphs, and what the bundle says of it.

    Attributes:
        name: What the graphs are said to be: ``fp32``, ``fp16``, ``int8``.
        precision: What the model is lowered in.
        facts: How half precision was kept in range; None where it is not half.
        files: Further files of the bundle, their texts by name.
        prepare: Changes the lowered model before it is traced.
        rewrite: Changes a traced graph.
        traced: The forward graph of what is prepared, where it was traced before.
    """

    name: str
    precision: Precision = FP32
    facts: PrecisionFacts | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[LoweredModel], None] = _leave
    rewrite: Callable[[ir.Model], None] = _leave
    traced: TracedGraph | None = None


def choose_variant(
    model: ReferenceModel, data: Data, options: ExportOptions, quantization: Quantization | None
) -> Variant:
    """Return what is to be written.

    Raises:
        ConfigError: The model would overflow in half precision within the longest sequence, see :func:`choose_islands`.
    """
    if quantization is not None:
        recipe = quantization.recipe
        return Variant(
            recipe.scheme.name,
            files={QUANTIZATION_FILE: quantization.record},
            prepare=join_projections,
            rewrite=partial(quantize_graph, recipe=recipe),
            traced=quantization.traced,
        )
    if options.precision == "fp32":
        return Variant("fp32")
    choice = choose_islands(model, data, options)
    return Variant(choice.precision.name, choice.precision, choice.facts)
