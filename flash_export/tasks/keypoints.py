"""Task ``keypoints``: where the joints of a body are; users see how many pixels they move.

A SimCC head scores every bin of the two axes of an image. A keypoint is where each axis scores highest, divided by the
bins of a pixel (mmpose 1.3.2, ``get_simcc_maximum``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flash_export.interface import Bins
from flash_export.tasks.base import Comparison, Loss, Measure, Score
from flash_export.tasks.energy import compute_energy_share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float

    from flash_export.data.batch import Outputs
    from flash_export.data.samples import Sample
    from flash_export.interface import Interface

PIXELS = Measure(
    "pixel_error", "mean distance", "px", "lower", "How far the decoded keypoints are from the original's, on average."
)
WITHIN = Measure(
    "within_half_pixel",
    "within half a pixel",
    "share",
    "higher",
    "The share of keypoints that are no further than half a pixel from the original's.",
)


HALF_A_PIXEL = 0.5


@dataclass(frozen=True)
class KeptKeypoints:
    """What a loss needs of one batch: all scores in one vector, and coordinates ``(batch, keypoints, axes)``."""

    scores: Float[np.ndarray, " n"]
    coordinates: Float[np.ndarray, "batch keypoints axes"]


class KeypointsTask:
    """Outputs with one axis of bins each, compared as the coordinates that they are decoded to."""

    name = "keypoints"
    measures = (PIXELS, WITHIN)

    def describe_score(self, interface: Interface) -> Measure:
        """Return the mean distance from known keypoints."""
        return PIXELS

    def compare(
        self, interface: Interface, expected: Outputs, actual: Outputs, compared: Bool[np.ndarray, "batch seq"]
    ) -> Comparison:
        """Return the mean distance of the decoded keypoints, and the share within half a pixel."""
        difference = decode_keypoints(interface, expected) - decode_keypoints(interface, actual)
        distances = np.linalg.norm(difference, axis=-1)[compared]
        measures = {PIXELS.name: float(distances.mean()), WITHIN.name: float((distances <= HALF_A_PIXEL).mean())}
        return Comparison(measures, distances.size)

    def score(self, interface: Interface, outputs: Outputs, sample: Sample) -> Score | None:
        """Return the sum of the distances from the target, coordinates ``(1, keypoints, axes)`` in pixels."""
        if sample.target is None:
            return None
        distances = np.linalg.norm(decode_keypoints(interface, outputs) - sample.target, axis=-1)
        return Score(float(distances.sum()), distances.size)

    def keep(self, interface: Interface, outputs: Outputs, sample: Sample) -> KeptKeypoints:
        """Return the scores in float32, and what they are decoded to."""
        scores = np.concatenate([outputs[spec.name].ravel() for spec in interface.outputs])
        return KeptKeypoints(scores.astype(np.float32), decode_keypoints(interface, outputs))

    def measure_loss(
        self, expected: Sequence[KeptKeypoints], found: Sequence[KeptKeypoints], samples: Sequence[Sample]
    ) -> Loss:
        """Return the larger of two shares: of the energy that is error, and of the keypoints that moved by more.

        Next to a peak a small error of the scores moves the keypoint to another bin, so that energy alone says too
        little; and of few images it may be that no keypoint moves, so that the other one alone does too.
        """
        energy = compute_energy_share([kept.scores for kept in expected], [kept.scores for kept in found])
        pairs = zip(expected, found, strict=False)
        distances = [np.linalg.norm(one.coordinates - other.coordinates, axis=-1).ravel() for one, other in pairs]
        moved = float((np.concatenate(distances) > HALF_A_PIXEL).mean())
        return Loss(max(energy, moved), measures={WITHIN.name: 1 - moved})


def decode_keypoints(interface: Interface, outputs: Outputs) -> Float[np.ndarray, "batch keypoints axes"]:
    """Return the coordinates in pixels, one axis an output."""
    axes = []
    for spec in interface.outputs:
        assert isinstance(spec.content, Bins)  # see the families that have this task
        axes.append(outputs[spec.name].argmax(axis=-1) / spec.content.per_pixel)
    return np.stack(axes, axis=-1)
