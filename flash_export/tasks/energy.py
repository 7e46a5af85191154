"""What tasks of real-valued outputs share: the loss is the share of the energy that the error makes up."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from flash_export.tasks.base import Loss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flash_export.data.samples import Sample


class EnergyLoss:
    """A loss for tasks that keep whole outputs: energy of the error as a fraction of the reference's energy.

    A share of 0.001 is a signal-to-noise ratio of 30 dB.
    """

    def measure_loss(
        self, expected: Sequence[np.ndarray], found: Sequence[np.ndarray], samples: Sequence[Sample]
    ) -> Loss:
        """Return the loss over the samples that were found."""
        error = energy = 0.0
        for wanted, actual in zip(expected, found, strict=False):
            difference = actual.astype(np.float64) - wanted
            error += float(np.square(difference).sum())
            energy += float(np.square(wanted, dtype=np.float64).sum())
        share = error / energy if energy else (0.0 if error == 0 else math.inf)
        return Loss(share if math.isfinite(share) else math.inf)
