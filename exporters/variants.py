"""Which variant of a lowered model is written: in fp32, in half precision, or quantized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from flash_export.bundle.bundle import QUANTIZATION_FILE
from flash_export.exporters.islands import choose_islands
from flash_export.exporters.lowering.pieces import join_projections
from flash_export.exporters.lowering.precision import FP32
from flash_export.exporters.quantization.rewrite import quantize_graph

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from flash_export.bundle.manifest import PrecisionFacts
    from flash_export.config import ExportOptions
    from flash_export.data.sources import Data
    from flash_export.exporters.lowering.base import LoweredModel
    from flash_export.exporters.lowering.precision import Precision
    from flash_export.exporters.quantization.plan import Quantization
    from flash_export.models.base import ReferenceModel


class Variant(Protocol):
    """What is done to a lowered model and its traced graphs, and what the bundle says of it."""

    @property
    def precision(self) -> Precision:
        """What the model is lowered in."""
        ...

    @property
    def name(self) -> str:
        """What the graphs are said to be: ``fp32``, ``fp16``, ``int8``."""
        ...

    @property
    def facts(self) -> PrecisionFacts | None:
        """How half precision was kept in range; None where it is not half."""
        ...

    @property
    def files(self) -> Mapping[str, str]:
        """Further files of the bundle, by name."""
        ...

    def prepare(self, lowered: LoweredModel) -> None:
        """Change the lowered model before it is traced."""
        ...

    def rewrite(self, graph: ir.Model) -> None:
        """Change a traced graph."""
        ...


@dataclass(frozen=True)
class PlainVariant:
    """The lowered model as it is, in fp32 or with the values narrowed that are no islands."""

    precision: Precision = FP32
    facts: PrecisionFacts | None = None

    @property
    def name(self) -> str:
        """The name of the precision."""
        return self.precision.name

    @property
    def files(self) -> Mapping[str, str]:
        """None."""
        return {}

    def prepare(self, lowered: LoweredModel) -> None:
        """Do nothing."""

    def rewrite(self, graph: ir.Model) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class QuantizedVariant:
    """Products of the fp32 graph replaced by ones in few bits."""

    quantization: Quantization
    precision: Precision = FP32
    facts: PrecisionFacts | None = None

    @property
    def name(self) -> str:
        """The scheme."""
        return self.quantization.plan.scheme.name

    @property
    def files(self) -> Mapping[str, str]:
        """How the plan came about."""
        return {QUANTIZATION_FILE: self.quantization.record}

    def prepare(self, lowered: LoweredModel) -> None:
        """Make one product of the input projections."""
        join_projections(lowered)

    def rewrite(self, graph: ir.Model) -> None:
        """Replace the products."""
        quantize_graph(graph, self.quantization.plan)


def choose_variant(
    model: ReferenceModel, data: Data, options: ExportOptions, quantization: Quantization | None
) -> Variant:
    """Return what is to be written.

    Raises:
        ConfigError: The model would overflow in half precision within the longest sequence, see :func:`choose_islands`.
    """
    if quantization is not None:
        return QuantizedVariant(quantization)
    if options.precision == "fp32":
        return PlainVariant()
    choice = choose_islands(model, data, options)
    return PlainVariant(choice.precision, choice.facts)
