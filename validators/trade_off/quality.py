"""What the predictions of each bundle are worth: the same data through the model in float64 and all of the bundles."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flash_export.data.samples import Sample
from flash_export.interface import BATCH, SEQ
from flash_export.limits import Tolerance
from flash_export.tasks.base import Comparison, Score, join_comparisons
from flash_export.tasks.registry import get_task
from flash_export.validators.accuracy import compare_outputs
from flash_export.validators.backends import GRAPH
from flash_export.validators.shape_checks import describe_exception
from flash_export.validators.trade_off.results import Quality

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flash_export.data.batch import Outputs
    from flash_export.data.sources import RandomSource
    from flash_export.interface import Interface
    from flash_export.runtime.runner import Runner
    from flash_export.validators.trade_off.candidates import Candidate

RANDOM_SAMPLES, RANDOM_SEQ_LEN = 8, 1024
# Nothing is refused here: how far a bundle may be off is the reader's to say.
_ANY = Tolerance(atol=float("inf"), rtol=0.0)


@dataclass
class _Sums:
    """What adds up over the samples; ``reason`` ends it."""

    scores: list[Score] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    reason: str | None = None

    @property
    def score(self) -> float | None:
        """The mean score; None where no sample has a target."""
        return sum(self.scores[1:], start=self.scores[0]).mean if self.scores else None


class QualityMeter:
    """Feeds one sample after the other to the model in float64 and to every candidate, and adds up what comes out."""

    def __init__(self, reference: Runner, interface: Interface, candidates: Sequence[Candidate]) -> None:
        """Start with nothing.

        Args:
            reference: The model in float64.
            interface: What it takes and gives.
            candidates: The bundles, the one that the others are compared with first.
        """
        self._reference = reference
        self._interface, self._task = interface, get_task(interface.task)
        self._candidates = candidates
        self._sums = [_Sums(reason=candidate.reason) for candidate in candidates]
        self._own = _Sums()
        self._predictions = 0

    @property
    def predictions(self) -> int:
        """How many predictions were compared."""
        return self._predictions

    @property
    def reference_score(self) -> float | None:
        """Score of the model in float64; None where no sample has a target."""
        return self._own.score

    def read(self, sample: Sample) -> None:
        """Compare what the model and every candidate predict for a sample."""
        expected = self._reference.run(sample.batch.to_model_inputs(masked=False))
        self._predictions += int(sample.counted.sum())
        if (score := self._task.score(self._interface, expected, sample)) is not None:
            self._own.scores.append(score)
        for candidate, sums in zip(self._candidates, self._sums, strict=True):
            if sums.reason is None:
                try:
                    self._add(candidate, sums, sample, expected)
                except Exception as error:  # whatever a bundle raises, the others still have something to tell
                    sums.reason = describe_exception(error, candidate.bundle.path)

    def summarise(self) -> list[Quality]:
        """Return what was found, a candidate each."""
        first, found = self._sums[0], []
        for sums in self._sums:
            if sums.reason is not None:
                found.append(Quality(sums.reason))
                continue
            known = sums.score is not None and first.reason is None and bool(first.score)
            found.append(
                Quality(
                    score=sums.score,
                    change=(sums.score or 0.0) / (first.score or 1.0) - 1 if known else None,
                    measures=join_comparisons(sums.comparisons).measures,
                )
            )
        return found

    def _add(self, candidate: Candidate, sums: _Sums, sample: Sample, expected: Outputs) -> None:
        actual, compared = _predict(candidate, sample), sample.counted
        specs = candidate.bundle.get_graph(GRAPH).outputs
        result = compare_outputs(self._interface, expected, expected, actual, compared, _ANY, specs=specs)
        if not result:
            sums.reason = f"{result.reason} at {sample.batch.seq_len} {self._interface.unit}"
            return
        sums.comparisons.append(self._task.compare(self._interface, expected, actual, compared))
        if (score := self._task.score(self._interface, actual, sample)) is not None:
            sums.scores.append(score)


def list_random_samples(candidates: Sequence[Candidate], source: RandomSource, count: int | None) -> Iterator[Sample]:
    """Yield samples of random inputs that all graphs can take, of which everything counts."""
    longest = min(candidate.bundle.get_graph(GRAPH).axes[SEQ].max for candidate in candidates)
    shortest = max(candidate.bundle.get_graph(GRAPH).axes[SEQ].min for candidate in candidates)
    for seed in range(count or RANDOM_SAMPLES):
        yield Sample(source.draw(1, max(min(longest, RANDOM_SEQ_LEN), shortest), seed=seed))


def _predict(candidate: Candidate, sample: Sample) -> Outputs:
    """Run a sample; a graph for one larger batch gets it in every row."""
    assert candidate.runner is not None  # a candidate without one has a reason, and is not run
    graph = candidate.bundle.get_graph(GRAPH)
    rows = sample.batch.take_rows([0] * graph.axes[BATCH].min)
    outputs = candidate.runner.run(rows.to_inputs(graph.inputs))
    return {
        spec.name: outputs[spec.name].take([0], axis=spec.shape.index(BATCH)) for spec in sample.batch.interface.outputs
    }
