"""What every task has: measures by name, and the functions that compute them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from jaxtyping import Bool

    from flash_export.data.batch import Outputs
    from flash_export.data.samples import Sample
    from flash_export.interface import Interface


@dataclass(frozen=True)
class Measure:
    """One figure that a task has.

    Attributes:
        name: Name in reports and JSON, such as ``kl_bits``.
        label: What a reader calls it, such as ``divergence``.
        unit: Such as ``bits per token``, ``dB`` or ``px``; ``share`` for a fraction that is shown in per cent.
        better: Which way is better.
        meaning: What it tells, in a sentence or two for someone who reads a report.
    """

    name: str
    label: str
    unit: str
    better: Literal["higher", "lower"]
    meaning: str = ""

    def format(self, value: float) -> str:
        """Return a value with its unit; shares in per cent, never rounded up to a whole.

        >>> Measure("top1_agreement", "same top token", "share", "higher").format(0.99996)
        '99.99%'
        """
        if self.unit == "share":
            return f"{math.floor(10000 * value) / 100:g}%"
        return f"{value:.3g} {self.unit}"


@dataclass(frozen=True)
class Comparison:
    """How two outputs compare.

    Attributes:
        measures: Means over the predictions, by the measure's name.
        count: How many predictions that were, so that means can be joined.
    """

    measures: dict[str, float]
    count: int


@dataclass(frozen=True)
class Score:
    """A sum over predictions of held-out data, such as of bits, and how many predictions that was."""

    total: float
    count: int

    def __add__(self, other: Score) -> Score:
        return Score(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> float:
        """The score a prediction."""
        return self.total / self.count


@dataclass(frozen=True)
class Loss:
    """What a variant of a model costs.

    Attributes:
        share: What a budget bounds: 0 for no loss; infinite where a prediction is not finite.
        score: Mean score of the variant; None where the data has no targets.
        reference_score: What the score is a fraction of.
        measures: The parts that the share was made of, by name.
    """

    share: float
    score: float | None = None
    reference_score: float | None = None
    measures: dict[str, float] = field(default_factory=dict)

    @property
    def change(self) -> float | None:
        """Change of the score, as a fraction of the reference's."""
        return None if self.score is None or not self.reference_score else self.score / self.reference_score - 1


class Task(Protocol):
    """What a model is good for."""

    @property
    def name(self) -> str:
        """Name in the interface."""
        ...

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What :meth:`compare` returns."""
        ...

    def describe_score(self, interface: Interface) -> Measure:
        """Return what :meth:`score` is, on the held-out data of this model."""
        ...

    def compare(
        self, interface: Interface, expected: Outputs, actual: Outputs, compared: Bool[np.ndarray, "batch seq"]
    ) -> Comparison:
        """Compare what two models return for the same batch, both finite where it counts.

        Args:
            interface: Of the model.
            expected: Of the reference.
            actual: Of what is judged.
            compared: Which positions count.
        """
        ...

    def score(self, interface: Interface, outputs: Outputs, sample: Sample) -> Score | None:
        """Score what a model returns for a sample; None where the sample has no target."""
        ...

    def keep(self, interface: Interface, outputs: Outputs, sample: Sample) -> Any:
        """Return what :meth:`measure_loss` needs of the outputs, in as little memory as may be."""
        ...

    def measure_loss(self, expected: Sequence[Any], found: Sequence[Any], samples: Sequence[Sample]) -> Loss:
        """Return what a variant loses against a reference, given what was kept of both.

        Args:
            expected: Of the reference, a sample each.
            found: Of the variant, of as many samples as it was asked about, from the first on.
            samples: The samples; their targets are used where all that were found have one.
        """
        ...


def describe_measures(task: Task, measures: Mapping[str, float]) -> str:
    """Return what a task measured, in words: ``same top token 93.2%, divergence 0.1 bits per prediction``."""
    known = (measure for measure in task.measures if measure.name in measures)
    return ", ".join(f"{measure.label} {measure.format(measures[measure.name])}" for measure in known)


def join_comparisons(parts: Sequence[Comparison]) -> Comparison:
    """Return the means over the predictions of all parts."""
    count = sum(part.count for part in parts)
    names = parts[0].measures if parts else {}
    means = {name: sum(part.count * part.measures[name] for part in parts) / count for name in names}
    return Comparison(means, count)
