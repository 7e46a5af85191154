"""What a product with weights may be computed in, and what is to become of each of a graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from flash_export.config import MIN_OPSET

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jaxtyping import Float

    from flash_export.config import QuantizeOptions
    from flash_export.exporters.quantization.numbers import NumberFormat
    from flash_export.exporters.quantization.rewrite import Place
    from flash_export.exporters.quantization.rounding import ProductSample, Rounding


@dataclass(frozen=True)
class Scheme:
    """How products are computed, or their weights kept, in few bits.

    Attributes:
        name: What users call it, and the precision of its graphs.
        list_roundings: The ways to round a product, the cheapest first; none where blocks do not divide its inputs.
        rewrite: Rewrites a product of a graph, in a spelling that runtimes fuse: QuantizeLinear and DequantizeLinear
            around a MatMul become one integer product in onnxruntime and in TensorRT, a DequantizeLinear of blocks a
            product with 4-bit weights.
        opset: The first that has operators for it.
        min_capability: Compute capability of the first GPUs that have it; None: all do.
        has_range: Whether scales of activations are known beforehand, so that its recipes carry the largest one.
        has_blocks: Whether its recipes carry a block size.
        max_terms: Most whole numbers that an activation is the sum of.
        reads_activations: Whether the ways are found by what the products are given; if not, nothing is calibrated.
    """

    name: str
    list_roundings: Callable[[ProductSample, QuantizeOptions], tuple[Rounding, ...]]
    rewrite: Callable[[Place, ProductRecipe], None]
    opset: int = MIN_OPSET
    min_capability: tuple[int, int] | None = None
    has_range: bool = False
    has_blocks: bool = False
    max_terms: int = 1
    reads_activations: bool = True


@dataclass(frozen=True)
class ProductRecipe:
    """How one product ``x W`` is computed.

    Attributes:
        scheme: What it is computed in.
        activation_max: Largest magnitude of x; None where the scheme does not round x, or measures it
            at run time.
        smoothing: What x is divided by before it is rounded, and the rows of W multiplied with, ``(k,)``; None: 1.
        terms: How many whole numbers x is the sum of. With two, the second is what rounding the first left,
            in steps 254 times as fine: outliers then cost the rest nothing.
        block_size: Inputs that share a scale; None where the scheme has no blocks.
    """

    scheme: Scheme
    activation_max: float | None = None
    smoothing: Float[np.ndarray, " k"] | None = None
    terms: int = 1
    block_size: int | None = None

    def __post_init__(self) -> None:
        """Check that what the scheme needs is there, and nothing that it has no use for."""
        for name, is_needed in (("activation_max", self.scheme.has_range), ("block_size", self.scheme.has_blocks)):
            if is_needed != ((value := getattr(self, name)) is not None):
                raise ValueError(f"scheme {self.scheme.name} with {name}={value}")
        if self.terms > self.scheme.max_terms or (self.terms > 1 and self.smoothing is not None):
            raise ValueError(f"scheme {self.scheme.name} has no smoothed or float product in {self.terms} terms")

    def compute_step(self, numbers: NumberFormat) -> np.float32:
        """Return the step of an activation whose range is known beforehand."""
        assert self.activation_max is not None  # see __post_init__
        return np.float32(self.activation_max / numbers.max)


@dataclass(frozen=True)
class QuantizationRecipe:
    """What is quantized in the graphs of a model.

    Attributes:
        scheme: What the graphs are said to be.
        products: By name, such as ``layers.3.out``; what is not named stays fp32.
    """

    scheme: Scheme
    products: Mapping[str, ProductRecipe] = field(default_factory=dict)
