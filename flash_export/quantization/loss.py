"""How much worse a quantized graph predicts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from flash_export.errors import InputError
from flash_export.runtime.ort import OrtRunner
from flash_export.tasks.registry import get_task

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from flash_export.bundle.manifest import GraphSpec
    from flash_export.data.samples import Sample
    from flash_export.interface import Interface
    from flash_export.tasks.base import Loss


ESTIMATE_SAMPLES = 12


class Judge:
    """Keeps what the fp32 graph predicts, and holds others against it."""

    def __init__(
        self,
        interface: Interface,
        graph: GraphSpec,
        path: Path,
        samples: Sequence[Sample],
        threads: int | None = None,
        *,
        variant: GraphSpec | None = None,
    ) -> None:
        """Run the fp32 graph on the samples.

        Args:
            interface: What the model takes and gives.
            graph: Contract of the fp32 graph.
            path: Its file.
            samples: What to judge by.
            threads: Threads of one operator.
            variant: Contract of those that are judged, where it differs.

        Raises:
            InputError: Its predictions are not finite, or leave nothing to lose.
        """
        self._interface, self._task = interface, get_task(interface.task)
        self._graph, self._samples, self._threads = graph, samples, threads
        self._expected = self._predict(path, len(samples))
        self._graph = variant or graph
        own = self._task.measure_loss(self._expected, self._expected, samples)
        if not math.isfinite(own.share) or (own.reference_score is not None and not 0 < own.reference_score < math.inf):
            score = self._task.describe_score(interface).label
            raise InputError(
                f"the model's own predictions on the data leave nothing to judge by ({score}: "
                f"{own.reference_score}); give data that it was trained for"
            )

    def measure(self, path: Path) -> Loss:
        """Return the loss of another graph over all samples; one that is not finite is infinite."""
        return self._task.measure_loss(self._expected, self._predict(path, len(self._samples)), self._samples)

    def estimate(self, path: Path) -> float:
        """Return the loss over some of the samples, without that of the score: enough to tell what costs most."""
        found = self._predict(path, ESTIMATE_SAMPLES)
        return self._task.measure_loss(self._expected, found, self._samples).share

    def _predict(self, path: Path, count: int) -> list[Any]:
        """Return what is kept of each sample's predictions."""
        found = []
        with OrtRunner(self._graph, path, threads=self._threads) as runner:
            for sample in self._samples[:count]:
                outputs = runner.run(sample.batch.to_inputs(self._graph.inputs))
                found.append(self._task.keep(self._interface, outputs, sample))
        return found
