"""Task ``tokens``: the next, or a hidden, token is predicted; users feel how many bits that takes.

Axes: n predictions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from flash_export.data.batch import iterate_blocks
from flash_export.tasks.base import Comparison, Loss, Measure, Score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float

    from flash_export.data.batch import Outputs
    from flash_export.data.samples import Sample
    from flash_export.interface import Interface, TensorSpec

TOP1 = Measure(
    "top1_agreement",
    "same top token",
    "share",
    "higher",
    "The share of predictions whose most likely token is the original's. Random tokens have more near ties than text.",
)
KL = Measure(
    "kl_bits",
    "divergence",
    "bits per prediction",
    "lower",
    "How far the predicted distribution is from the exact one (Kullback-Leibler), as a mean over the predictions.",
)
# A byte has a vocabulary of 256, and some models one token more for what is hidden.
BYTE_VOCABULARIES = (256, 257)


class TokensTask:
    """Logits of a vocabulary, compared as the distributions that they are."""

    name = "tokens"
    measures = (TOP1, KL)

    def describe_score(self, interface: Interface) -> Measure:
        """Bits per byte where the tokens are bytes, else per token."""
        size = interface.vocab_size or 0
        label = "bits per byte" if size in BYTE_VOCABULARIES else "bits per token"
        meaning = f"How well the model predicts data it has not seen; {math.log2(max(size, 2)):.3g} is guessing."
        return Measure("bits", label, "bits", "lower", meaning)

    def compare(
        self, interface: Interface, expected: Outputs, actual: Outputs, compared: Bool[np.ndarray, "batch seq"]
    ) -> Comparison:
        """Return the share of predictions with the same top token, and the mean ``KL(expected || actual)`` in bits."""
        spec = _get_logits(interface)
        agreeing = count = 0
        divergence = 0.0
        for wanted, found in iterate_blocks(spec, compared, expected[spec.name], actual[spec.name]):
            count += len(wanted)
            agreeing += int(np.count_nonzero(wanted.argmax(axis=-1) == found.argmax(axis=-1)))
            divergence += _sum_divergence(compute_log_softmax(wanted), compute_log_softmax(found))
        kl_bits = max(divergence / count / math.log(2), 0.0)
        return Comparison({TOP1.name: agreeing / count, KL.name: kl_bits}, count)

    def score(self, interface: Interface, outputs: Outputs, sample: Sample) -> Score | None:
        """Return the sum of ``-log2 p`` of the targets."""
        if sample.target is None:
            return None
        spec = _get_logits(interface)
        predictions = outputs[spec.name][0, np.flatnonzero(sample.counted[0])].astype(np.float64)
        return Score(_sum_bits(compute_log_softmax(predictions), sample.target), len(sample.target))

    def keep(self, interface: Interface, outputs: Outputs, sample: Sample) -> Float[np.ndarray, "n vocab"]:
        """Return the logarithms of the probabilities of the predictions, in float32."""
        logits = outputs[_get_logits(interface).name][0, np.flatnonzero(sample.counted[0])]
        with np.errstate(invalid="ignore"):  # infinite logits give NaN, and that an infinite loss
            return compute_log_softmax(logits.astype(np.float64)).astype(np.float32)

    def measure_loss(
        self,
        expected: Sequence[Float[np.ndarray, "n vocab"]],
        found: Sequence[Float[np.ndarray, "n vocab"]],
        samples: Sequence[Sample],
    ) -> Loss:
        """Return the loss, whose share is the largest of three.

        They are divergence and change of the bits, as fractions of the bits that the reference needs, and what the
        error makes up of the variance of the logits over the vocabulary. The change alone may be small by chance, and
        negative; and both are small whatever becomes of the logits where a model hardly knows more than nothing.
        """
        divergence = error = variance = 0.0
        for wanted, logs in zip(expected, found, strict=False):
            divergence += _sum_divergence(wanted, logs)
            error += float(np.square(_center(logs) - _center(wanted)).sum())
            variance += float(np.square(_center(wanted)).sum())
        count = sum(map(len, found))
        kl_bits, noise = divergence / math.log(2) / count, error / variance if variance else 0.0
        reference_bits = self._count_bits(expected, samples)
        if reference_bits is None:
            entropy = sum(float((np.exp(logs) * logs).sum()) for logs in expected) / -math.log(2)
            reference_bits = entropy / sum(map(len, expected))
        is_whole = len(found) == len(samples)
        bits = self._count_bits(found, samples) if is_whole else None
        change = bits / reference_bits - 1 if bits is not None and reference_bits else 0.0
        share = max(kl_bits / reference_bits, change, noise) if reference_bits else math.inf
        if not (math.isfinite(kl_bits) and math.isfinite(share)):
            return Loss(math.inf, None, reference_bits, {KL.name: math.inf, "variance": math.inf})
        return Loss(share, bits, reference_bits, {KL.name: max(kl_bits, 0.0), "variance": noise})

    def _count_bits(self, logs: Sequence[Float[np.ndarray, "n vocab"]], samples: Sequence[Sample]) -> float | None:
        """Return the bits of a prediction, or None where a sample has no target."""
        total, count = 0.0, 0
        for values, sample in zip(logs, samples, strict=False):
            if sample.target is None:
                return None
            total += _sum_bits(values, sample.target)
            count += len(sample.target)
        return total / count


def compute_log_softmax(logits: Float[np.ndarray, "n vocab"]) -> Float[np.ndarray, "n vocab"]:
    """Return the logarithms of the probabilities."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _get_logits(interface: Interface) -> TensorSpec:
    return interface.outputs[0]


def _sum_divergence(log_p: Float[np.ndarray, "n vocab"], log_q: Float[np.ndarray, "n vocab"]) -> float:
    """Return the sum over predictions of ``KL(p || q)``, in nats."""
    return float((np.exp(log_p) * (log_p - log_q)).sum())


def _sum_bits(logs: Float[np.ndarray, "n vocab"], targets: np.ndarray) -> float:
    return -float(np.take_along_axis(logs, targets[:, None], axis=-1).sum(dtype=np.float64)) / math.log(2)


def _center(logs: Float[np.ndarray, "n vocab"]) -> Float[np.ndarray, "n vocab"]:
    """Return logits, or logarithms of probabilities, without what is the same for all tokens."""
    return logs - logs.mean(axis=-1, keepdims=True)
