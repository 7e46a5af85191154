"""What ``quantization.json`` says: what was quantized, how, and why the rest was not."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from flash_export.config import READABLE_SCHEMES
from flash_export.typed_json import show

FORMAT_VERSION = 2
FP32 = "fp32"


@dataclass(frozen=True)
class ProductRecord:
    """One product with a weight.

    Attributes:
        name: Such as ``layers.3.out``.
        scheme: What it is computed in; ``fp32`` if it was kept.
        terms: Whole numbers that its activation is the sum of.
        weights: Number of weights.
        sensitivity: Loss if it is the only one that is quantized, in the cheapest way; None if it may not be, if that
            gives predictions that are not finite, or if nothing had to be chosen, because all together lose little.
        error: Root mean square of the product's own error on the sample, as a fraction; None in fp32, and where nothing
            was calibrated.
        activation_max: Largest activation; None where activations are not rounded, or measured in every run.
        smoothing_strength: How much of the outliers moved into the weight, 0 to 1.
        reason: Why it is not computed in the cheapest way; None if it is.
    """

    name: str
    scheme: str
    weights: int
    sensitivity: float | None
    terms: int = 1
    error: float | None = None
    activation_max: float | None = None
    smoothing_strength: float = 0.0
    reason: str | None = None


@dataclass(frozen=True)
class QuantizationRecord:
    """How a bundle was quantized.

    Attributes:
        scheme: ``int8-token``, ``int8``, ``int4`` or ``fp8``; of older bundles ``int8-dynamic``.
        source_sha256: Hash of the manifest of the bundle that it was made from.
        data: What was read, such as ``held-out text``, the name of a file, or ``random tokens``.
        data_sha256: Its hash.
        seq_lens: Lengths that the ranges were measured at; none where nothing had to be calibrated.
        predictions: Number of predictions that were judged.
        budget: Accepted loss.
        loss: Loss of what was chosen, see ``measure_loss`` of the task.
        measures: The parts that the loss is made of, by name.
        score: Mean score of the predictions; None where the data does not tell what was to be predicted.
        reference_score: The same of the fp32 graph; for predictions of tokens without targets, their entropy.
        block_size: int4 alone: inputs that share a scale.
        products: In the order of the graph.
        format_version: Version of this layout.
    """

    scheme: str
    source_sha256: str
    data: str
    data_sha256: str
    seq_lens: tuple[int, ...]
    predictions: int
    budget: float
    loss: float
    measures: dict[str, float]
    score: float | None
    reference_score: float | None
    block_size: int | None
    products: tuple[ProductRecord, ...]
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Check what decides how the bundle is judged."""
        if self.scheme not in READABLE_SCHEMES:
            raise ValueError(f"scheme is {show(self.scheme)}, wanted {', '.join(READABLE_SCHEMES)}")
        if not 0 < self.budget < 1:
            raise ValueError(f"budget is {self.budget}, wanted a fraction between 0 and 1")
        if self.format_version != FORMAT_VERSION:
            raise ValueError(f"format_version is {self.format_version}, this version reads {FORMAT_VERSION}")
        if any(product.weights < 1 for product in self.products):
            raise ValueError("a product has no weights")

    @property
    def quantized_share(self) -> float:
        """Share of the weights that are quantized."""
        total = sum(product.weights for product in self.products)
        return sum(product.weights for product in self.products if product.scheme != FP32) / total if total else 0.0

    def to_json(self) -> str:
        """Return the text of ``quantization.json``."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"
