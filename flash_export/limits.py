"""How far a graph may be from the model: a tolerance that a user states, or the budget of a precision or scheme."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from flash_export.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Limit(Protocol):
    """What decides how far an output may be off: a tolerance, or the budget of a precision."""

    @property
    def noise_ratio(self) -> float | None:
        """Largest accepted error as a multiple of the eager model's own; None: that does not matter."""
        ...

    @property
    def measures(self) -> Mapping[str, float]:
        """Worst accepted value of a task's measures, by name; those that are not named may have any."""
        ...

    @property
    def score_change(self) -> float | None:
        """Largest accepted worsening of the score on held-out data, as a fraction; None: any."""
        ...

    def compute_own_limit(self, scale: float, noise: float) -> float:
        """Return how much two of a backend's own runs that compute the same may differ."""
        ...

    def compute_limit(self, scale: float, noise: float) -> float:
        """Return the largest accepted absolute error."""
        ...

    def describe(self) -> dict[str, str]:
        """Say it by name, for reports."""
        ...


@dataclass(frozen=True)
class Tolerance:
    """Largest accepted difference, as a user states it: ``atol + rtol * scale``.

    ``scale`` is the largest expected magnitude.
    """

    atol: float = 0.0
    rtol: float = 1e-4
    noise_ratio: None = None
    score_change: None = None

    @property
    def measures(self) -> Mapping[str, float]:
        """None: the difference alone decides."""
        return {}

    def __post_init__(self) -> None:
        """Check that something is tolerated, and nothing negative."""
        if not (self.atol >= 0 and self.rtol >= 0 and self.atol + self.rtol > 0):
            raise ConfigError(f"atol={self.atol}, rtol={self.rtol} is not usable; both at least 0 and one above")

    def compute_limit(self, scale: float, noise: float) -> float:
        """Return the largest accepted absolute difference for outputs of this scale; ``noise`` does not matter."""
        return self.atol + self.rtol * scale

    def compute_own_limit(self, scale: float, noise: float) -> float:
        """Return how much two of a backend's own runs that compute the same may differ."""
        return self.compute_limit(scale, noise)

    def describe(self) -> dict[str, str]:
        """Say it by name, for reports."""
        return {"tolerance": f"{self.atol:g} and {self.rtol:g} of the largest output"}


@dataclass(frozen=True)
class ErrorBudget:
    """How much further from exact arithmetic a backend may be than the eager model in the same precision is.

    The eager model's own error is the noise floor: what the precision costs, at this length, on these inputs. Where it
    happens to be very small, as at a length of 1, ``floor`` stands in for it.

    Attributes:
        noise_ratio: Largest accepted error as a multiple of the eager model's.
        floor: Smallest noise that counts, as a fraction of the output's scale.
        score_change: Largest accepted worsening of the score on held-out data, as a fraction.
    """

    noise_ratio: float
    floor: float
    score_change: float | None = None

    @property
    def measures(self) -> Mapping[str, float]:
        """None: the difference alone decides."""
        return {}

    def compute_limit(self, scale: float, noise: float) -> float:
        """Return the largest accepted absolute error.

        Args:
            scale: Largest expected magnitude.
            noise: Largest absolute error of the eager model; NaN if it has none, because it overflowed.
        """
        least = self.floor * scale
        return self.noise_ratio * (noise if noise > least else least)

    def compute_own_limit(self, scale: float, noise: float) -> float:
        """Return how much two of a backend's own runs that compute the same may differ."""
        return self.compute_limit(scale, noise)

    def describe(self) -> dict[str, str]:
        """Say it by name, for reports."""
        limit = {"error_limit": f"{self.noise_ratio:g} times the eager model's own error"}
        return limit if self.score_change is None else {**limit, "accepted_loss": f"{self.score_change:.2%}"}


@dataclass(frozen=True)
class QuantizationBudget:
    """How far a quantized graph may be from the model: there is no eager model in its precision to be held against.

    Attributes:
        error: Largest accepted error, as a fraction of the output's scale.
        own_error: How much two of its own runs that compute the same may differ, as such a fraction.
        measures: Worst accepted value of measures of a task, at a shape: bits of divergence for predictions.
        score_change: Largest accepted worsening of the score on held-out data, as a fraction; what a bundle may lose
            when it is quantized, unless a budget is given.
    """

    error: float
    own_error: float
    measures: Mapping[str, float]
    score_change: float
    noise_ratio: None = None

    def compute_limit(self, scale: float, noise: float) -> float:
        """Return the largest accepted absolute error; ``noise`` does not matter."""
        return self.error * scale

    def compute_own_limit(self, scale: float, noise: float) -> float:
        """Return how much two runs may differ; ``noise`` does not matter."""
        return self.own_error * scale

    def describe(self) -> dict[str, str]:
        """Say it by name, for reports."""
        return {
            "error_limit": f"{self.error:.0%} of the largest output",
            **{f"{name}_limit": f"{value:g}" for name, value in self.measures.items()},
            "accepted_loss": f"{self.score_change:.2%}",
        }


# docs/validation.md says how these were chosen. The floor is four units in the last place of the precision.
ERROR_BUDGETS = {
    "fp32": ErrorBudget(noise_ratio=8.0, floor=2.0**-22, score_change=0.0005),
    "fp16": ErrorBudget(noise_ratio=4.0, floor=2.0**-9, score_change=0.001),
    "bf16": ErrorBudget(noise_ratio=3.0, floor=2.0**-7, score_change=0.005),
}
# By scheme: all that is known of it to those who must not import exporters.
QUANTIZATION_BUDGETS = {
    "int8-token": QuantizationBudget(error=0.25, own_error=0.02, measures={"kl_bits": 0.1}, score_change=0.005),
    "int8": QuantizationBudget(error=0.5, own_error=0.02, measures={"kl_bits": 0.2}, score_change=0.005),
    "int4": QuantizationBudget(error=0.5, own_error=0.02, measures={"kl_bits": 0.2}, score_change=0.02),
    # A rounding that falls the other way moves a value by up to a sixteenth of itself, of int8 by 1/127 of the largest.
    "fp8": QuantizationBudget(error=0.25, own_error=0.05, measures={"kl_bits": 0.1}, score_change=0.005),
}
# What bundles of older versions may be in, and what took its place: opened as before, but no longer made or judged.
RETIRED_SCHEMES = {"int8-dynamic": "int8-token"}


def refuse_retired(scheme: str) -> None:
    """Check that a scheme is still made and judged.

    Raises:
        ConfigError: It is not; the message names what took its place.
    """
    if scheme in RETIRED_SCHEMES:
        raise ConfigError(
            f"{scheme} is retired, because what it answered for a token depended on later ones and on other rows; "
            f"quantize the fp32 bundle with --scheme {RETIRED_SCHEMES[scheme]}"
        )
