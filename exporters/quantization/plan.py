"""What is to become of each product of a graph with weights, as the graph rewriter takes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flash_export.config import FP8, INT8

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float
    from numpy import ndarray


@dataclass(frozen=True)
class ProductPlan:
    """How one product ``x W`` is computed.

    Attributes:
        scheme: ``int8``, ``int8-dynamic``, ``int4`` or ``fp8``.
        activation_max: Largest magnitude of x; None where the scheme does not round x, or measures it
            at run time.
        smoothing: What x is divided by before it is rounded, and the rows of W multiplied with, ``(k,)``; None: 1.
        terms: int8 alone: how many whole numbers x is the sum of. With two, the second is what rounding the first left,
            in steps 254 times as fine: outliers then cost the rest nothing.
        block_size: int4 alone: inputs that share a scale.
    """

    scheme: str
    activation_max: float | None = None
    smoothing: Float[ndarray, " k"] | None = None
    terms: int = 1
    block_size: int = 32

    def __post_init__(self) -> None:
        """Check that what the scheme needs is there, and nothing that it has no use for."""
        if (self.scheme in (INT8, FP8)) != (self.activation_max is not None):
            raise ValueError(f"scheme {self.scheme} with activation_max={self.activation_max}")
        if self.terms > 1 and (self.scheme != INT8 or self.smoothing is not None):
            raise ValueError(f"scheme {self.scheme} has no smoothed or float product in {self.terms} terms")


@dataclass(frozen=True)
class QuantizationPlan:
    """What is quantized in the graphs of a model.

    Attributes:
        scheme: What the graphs are said to be.
        products: By name, such as ``layers.3.out``; what is not named stays fp32.
    """

    scheme: str
    products: Mapping[str, ProductPlan] = field(default_factory=dict)


@dataclass(frozen=True)
class Quantization:
    """A plan, and what a bundle made by it says of its origin.

    Attributes:
        plan: What is quantized.
        provenance: Where the weights came from, from the bundle that is quantized.
        record: Text of ``quantization.json``: how the plan came about.
    """

    plan: QuantizationPlan
    provenance: dict[str, str]
    record: str
