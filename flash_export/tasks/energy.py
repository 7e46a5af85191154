"""What tasks of real-valued outputs share: how much of the energy the error makes up."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


def compute_energy_share(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Return the energy of the error as a fraction of the reference's, over what was found.

    A share of 0.001 is a signal-to-noise ratio of 30 dB; it is infinite where there is a number that is not finite.
    """
    error = energy = 0.0
    for wanted, actual in zip(expected, found, strict=False):
        difference = actual.astype(np.float64) - wanted
        error += float(np.square(difference).sum())
        energy += float(np.square(wanted, dtype=np.float64).sum())
    share = error / energy if energy else (0.0 if error == 0 else math.inf)
    return share if math.isfinite(share) else math.inf
