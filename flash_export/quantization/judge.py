"""How much worse a quantized graph predicts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flash_export.errors import InputError
from flash_export.runtime.ort import OrtRunner
from flash_export.validators.accuracy import compute_log_softmax
from flash_export.validators.plan import CellInputs, build_graph_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jaxtyping import Float

    from flash_export.manifest import GraphSpec
    from flash_export.quantization.text import Window


ESTIMATE_WINDOWS = 12


@dataclass(frozen=True)
class Loss:
    """What quantization costs.

    Attributes:
        kl_bits: Divergence of the predictions from those of the fp32 graph, in bits a prediction.
        bits: Bits that the graph needs for a prediction; None where the text has no targets.
        reference_bits: The same of the fp32 graph; where there are no targets, the entropy of its predictions.
        variance: Share of the variance of the fp32 graph's logits, over the vocabulary, that the error makes up.
    """

    kl_bits: float
    bits: float | None
    reference_bits: float
    variance: float

    @property
    def share(self) -> float:
        """The largest of divergence and change of the bits, as fractions of the bits, and the share of the variance.

        The change alone may be small by chance, and negative. Both are small whatever becomes of the logits where the
        model hardly knows more than nothing.
        """
        change = 0.0 if self.bits is None else self.bits - self.reference_bits
        return max(self.kl_bits / self.reference_bits, change / self.reference_bits, self.variance)

    @property
    def change(self) -> float | None:
        """Change of the bits, as a fraction."""
        return None if self.bits is None else self.bits / self.reference_bits - 1


class Judge:
    """Keeps what the fp32 graph predicts, and holds others against it."""

    def __init__(self, graph: GraphSpec, path: Path, windows: Sequence[Window], threads: int | None = None) -> None:
        """Read the windows with the fp32 graph.

        Raises:
            InputError: Its predictions are not finite, or leave nothing to lose.
        """
        self._graph, self._windows, self._threads = graph, windows, threads
        self._expected = self._predict(path, len(windows))
        self._count = sum(len(window.predictors) for window in windows)
        entropy = -sum(float((np.exp(logs) * logs).sum()) for logs in self._expected) / math.log(2) / self._count
        bits = self._count_bits(self._expected)
        self.reference_bits = entropy if bits is None else bits
        if not 0 < self.reference_bits < math.inf:
            raise InputError(
                f"the model needs {self.reference_bits} bits for a token of the calibration text; give text that it "
                "was trained for"
            )

    def measure(self, path: Path) -> Loss:
        """Read the windows with another graph; a loss that is not finite is infinite."""
        found = self._predict(path, len(self._windows))
        return self._compare(found, self._count_bits(found))

    def estimate(self, path: Path) -> float:
        """Return the loss over some of the windows, without that of the bits: enough to tell what costs most."""
        return self._compare(self._predict(path, ESTIMATE_WINDOWS), None).share

    def _compare(self, found: Sequence[Float[np.ndarray, "n vocab"]], bits: float | None) -> Loss:
        """Hold predictions against those of the fp32 graph, of as many windows as there are."""
        divergence = error = variance = 0.0
        for expected, logs in zip(self._expected, found, strict=False):
            divergence += float((np.exp(expected) * (expected - logs)).sum())
            error += float(np.square(_center(logs) - _center(expected)).sum())
            variance += float(np.square(_center(expected)).sum())
        kl_bits = divergence / math.log(2) / sum(map(len, found))
        loss = Loss(max(kl_bits, 0.0), bits, self.reference_bits, error / variance if variance else 0.0)
        is_finite = math.isfinite(kl_bits) and math.isfinite(loss.share)
        return loss if is_finite else Loss(math.inf, None, self.reference_bits, math.inf)

    def _predict(self, path: Path, count: int) -> list[Float[np.ndarray, "n vocab"]]:
        """Return the logarithms of the probabilities of each window's predictions."""
        found = []
        with OrtRunner(self._graph, path, threads=self._threads) as runner:
            for window in self._windows[:count]:
                inputs = CellInputs(window.input_ids, np.array([window.input_ids.shape[1]]))
                logits = runner.run(build_graph_inputs(self._graph.inputs, inputs))["logits"]
                with np.errstate(invalid="ignore"):  # infinite logits give NaN, and that an infinite loss
                    logs = compute_log_softmax(logits[0, window.predictors].astype(np.float64))
                found.append(logs.astype(np.float32))
        return found

    def _count_bits(self, logs: Sequence[Float[np.ndarray, "n vocab"]]) -> float | None:
        """Return the bits of a prediction, or None where the text has no targets."""
        total = 0.0
        for window, values in zip(self._windows, logs, strict=True):
            if window.targets is None:
                return None
            total -= float(np.take_along_axis(values, window.targets[:, None], axis=-1).sum(dtype=np.float64))
        return total / math.log(2) / self._count


def _center(logs: Float[np.ndarray, "n vocab"]) -> Float[np.ndarray, "n vocab"]:
    """Return logits, or logarithms of probabilities, without what is the same for all tokens."""
    return logs - logs.mean(axis=-1, keepdims=True)
