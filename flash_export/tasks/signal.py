"""Task ``signal``: sound, or a mask for it; users hear how loud the error is beside the signal."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from flash_export.data.batch import iterate_blocks
from flash_export.interface import BATCH, SEQ, Waveform
from flash_export.tasks.base import Comparison, Loss, Measure, Score
from flash_export.tasks.energy import compute_energy_share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float

    from flash_export.data.batch import Outputs
    from flash_export.data.samples import Sample
    from flash_export.interface import Interface

SI_SDR = Measure(
    "si_sdr_db",
    "SI-SDR",
    "dB",
    "higher",
    "How loud the original's output is beside the difference from it, at the best volume; 60 dB is a thousandth.",
)
SNR = Measure("snr_db", "signal to noise", "dB", "higher", "The same, where a wrong volume counts as a difference too.")
# Float64 tells nothing apart beyond this: two equal signals have no finite ratio.
MAX_DB = 300.0


class SignalTask:
    """Outputs compared by ratios of energies, each row and channel alone, the mean of the decibels taken."""

    name = "signal"
    measures = (SI_SDR, SNR)

    def describe_score(self, interface: Interface) -> Measure:
        """Return SI-SDR against a clean target."""
        meaning = "How loud the clean target is beside what is wrong."
        if isinstance(interface.outputs[0].content, Waveform):
            meaning = f"{meaning} Of several sources the mean, in the order that fits best."
        return Measure("si_sdr_db", "SI-SDR", "dB", "higher", meaning)

    def compare(
        self, interface: Interface, expected: Outputs, actual: Outputs, compared: Bool[np.ndarray, "batch seq"]
    ) -> Comparison:
        """Return SI-SDR and SNR against the reference's outputs, in decibels."""
        ratios = []
        for row in range(len(compared)):
            only = np.zeros_like(compared)
            only[row] = compared[row]
            for spec in interface.outputs:
                blocks = list(iterate_blocks(spec, only, expected[spec.name], actual[spec.name]))
                wanted, found = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
                ratios.append((compute_si_sdr(wanted, found), compute_snr(wanted, found)))
        si_sdr, snr = np.mean(ratios, axis=0)
        return Comparison({SI_SDR.name: float(si_sdr), SNR.name: float(snr)}, len(ratios))

    def score(self, interface: Interface, outputs: Outputs, sample: Sample) -> Score | None:
        """Return the SI-SDR of the first output against the target; of several waveforms in the better order."""
        if sample.target is None:
            return None
        spec = interface.outputs[0]
        found, wanted = outputs[spec.name], sample.target
        if isinstance(spec.content, Waveform) and len(spec.shape) == len((BATCH, "sources", SEQ)):
            return Score(compute_separation(wanted.reshape(found.shape)[0], found[0]), 1)
        return Score(compute_si_sdr(wanted, found), 1)

    def keep(self, interface: Interface, outputs: Outputs, sample: Sample) -> np.ndarray:
        """Return all outputs in one vector, in float32."""
        return np.concatenate([outputs[spec.name].ravel() for spec in interface.outputs]).astype(np.float32)

    def measure_loss(
        self, expected: Sequence[np.ndarray], found: Sequence[np.ndarray], samples: Sequence[Sample]
    ) -> Loss:
        """Return the share of the energy that is error."""
        return Loss(compute_energy_share(expected, found))


def compute_si_sdr(expected: Float[np.ndarray, ...], actual: Float[np.ndarray, ...]) -> float:
    """Return the scale-invariant signal-to-distortion ratio in dB (Le Roux et al., arXiv 1811.02508, without means).

    It is what remains wrong after the best volume was chosen: of a signal that is only louder or softer, nothing.
    """
    wanted, found = expected.ravel().astype(np.float64), actual.ravel().astype(np.float64)
    energy = float(wanted @ wanted)
    if not energy:
        return -MAX_DB if found.any() else MAX_DB
    projection = (float(found @ wanted) / energy) * wanted
    return _to_decibels(float(projection @ projection), float(np.square(found - projection).sum()))


def compute_separation(expected: Float[np.ndarray, "k n"], actual: Float[np.ndarray, "k n"]) -> float:
    """Return the mean SI-SDR of sources in dB, in the order in which it is largest: no order is the right one."""
    ratios = [[compute_si_sdr(wanted, found) for found in actual] for wanted in expected]
    orders = itertools.permutations(range(len(actual)))
    return max(float(np.mean([row[one] for row, one in zip(ratios, order, strict=True)])) for order in orders)


def compute_snr(expected: Float[np.ndarray, ...], actual: Float[np.ndarray, ...]) -> float:
    """Return the ratio of the energies of signal and error, in dB."""
    wanted, found = expected.ravel().astype(np.float64), actual.ravel().astype(np.float64)
    if np.array_equal(wanted, found):
        return MAX_DB
    return _to_decibels(float(wanted @ wanted), float(np.square(found - wanted).sum()))


def _to_decibels(signal: float, noise: float) -> float:
    if signal == 0:
        return -MAX_DB
    if noise == 0:
        return MAX_DB
    return min(max(10 * math.log10(signal / noise), -MAX_DB), MAX_DB)
