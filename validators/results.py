"""What a validation found, as frozen dataclasses with the JSON form that docs/report-format.md describes."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from flash_export.config import SCHEMES
from flash_export.tasks.base import Measure  # noqa: TC001 (its fields are read as a schema)
from flash_export.validators.footprint import Footprint  # noqa: TC001
from flash_export.validators.latency import Percentiles  # noqa: TC001

REPORT_FORMAT_VERSION = 3

Status = Literal["passed", "failed", "skipped"]
ACCURACY = "accuracy"
HELDOUT_SCORE = "heldout-score"  # what ``--check`` calls the score
EAGER = "eager"  # the model itself, among the backends that have a score


@dataclass(frozen=True)
class Row:
    """One check of one backend at one shape.

    A skipped backend has one row with a batch and length of None: none of its shapes was tried. Nor has the check of a
    graph's declared shapes a batch and length: nothing is run.

    Attributes:
        backend: What was checked.
        graph: Graph of the bundle that it runs.
        batch: Sequences.
        seq_len: Length of each, padding included.
        masked: Whether the sequences were right-padded.
        status: What came out.
        reason: Why the row failed or was skipped, or what is missing from a row that passed.
        check: ``accuracy``, which compares with the reference, or the name of an invariance.
        inputs: What the inputs are: ``random`` or ``recorded``, from the held-out data.
        max_abs_error: Largest absolute difference from the reference in float64; of an invariance: of the two runs.
        max_rel_error: The same as a fraction of the largest expected magnitude.
        noise: The eager model's own error in the graph's precision, as such a fraction; None in a report of a
            quantized bundle, because no eager model has its precision.
        tolerance: Largest accepted ``max_abs_error``.
        output: Which output the figures are of, of a model that has several: the furthest off.
        name: What ``flash-export validate --check`` calls it; empty for what has no name.
        measures: What the task measures, by name: see ``measures`` of the report.
        latency_ms: Latency of the backend.
        eager_latency_ms: Latency of the eager model, measured in turn with the backend.
        compiled_latency_ms: Latency of the eager model under ``torch.compile``, if that was asked for.
        first_latency_ms: The first run of the backend at this shape, whatever it had to prepare included.
        speedup: How many times faster the backend is than the eager model, by the medians.
        units_per_s: Throughput of the backend, by its median.
    """

    backend: str
    graph: str
    batch: int | None
    seq_len: int | None
    masked: bool
    status: Status
    reason: str | None = None
    check: str = ACCURACY
    inputs: str = "random"
    max_abs_error: float | None = None
    max_rel_error: float | None = None
    noise: float | None = None
    tolerance: float | None = None
    output: str | None = None
    name: str = ""
    measures: dict[str, float] = field(default_factory=dict)
    latency_ms: Percentiles | None = None
    eager_latency_ms: Percentiles | None = None
    compiled_latency_ms: Percentiles | None = None
    first_latency_ms: float | None = None
    speedup: float | None = None
    units_per_s: float | None = None

    def __bool__(self) -> bool:
        return self.status == "passed"


@dataclass(frozen=True)
class HeldoutScores:
    """Mean scores on held-out data.

    Attributes:
        measure: What they are.
        values: Of ``eager`` and of each backend that was read.
    """

    measure: Measure
    values: dict[str, float]

    def __post_init__(self) -> None:
        """Check that there is something to compare with."""
        if EAGER not in self.values:
            raise ValueError(f"values.{EAGER} is missing")

    def compute_loss(self, name: str) -> float:
        """Return how much worse a score is than the eager model's, as a fraction of that; negative: better."""
        eager = self.values[EAGER]
        worse = self.values[name] - eager if self.measure.better == "lower" else eager - self.values[name]
        return worse / abs(eager) if eager else 0.0


@dataclass(frozen=True)
class ValidationReport:
    """Everything that a validation found; true when something passed and nothing failed.

    Attributes:
        bundle: The folder, as it was given.
        environment: Facts of the model, versions, hardware.
        rows: Every check.
        measures: What the task of the model measures, in the order in which it is shown.
        unit: What lengths count: ``tokens``, ``frames``, ``samples``, ``keypoints``.
        scores: The score on held-out data of ``eager`` and of each backend; None where there is none.
        diagnosis: What the failures have in common, a sentence each.
        footprints: What each backend costs in a process of its own: opening, first calls, memory.
        arguments: What was given to ``flash-export validate`` beside the bundle and what is checked.
        onnx_files: Graphs of other exporters among the backends.
    """

    bundle: str
    environment: dict[str, str | int]
    rows: tuple[Row, ...]
    measures: tuple[Measure, ...]
    unit: str = "tokens"
    scores: HeldoutScores | None = None
    diagnosis: tuple[str, ...] = ()
    footprints: tuple[Footprint, ...] = ()
    arguments: tuple[str, ...] = ()
    onnx_files: tuple[str, ...] = ()
    format_version: int = REPORT_FORMAT_VERSION

    def __post_init__(self) -> None:
        """Check the measures; drop the noise of a quantized bundle: that of fp32 has nothing to do with its error."""
        if not self.measures:
            raise ValueError("measures is empty, wanted one at least")
        if self.is_quantized:
            rows = tuple(row if row.noise is None else dataclasses.replace(row, noise=None) for row in self.rows)
            object.__setattr__(self, "rows", rows)

    @property
    def is_quantized(self) -> bool:
        """Whether the graph computes in few bits, so that it loses something by design."""
        return self.environment.get("precision") in SCHEMES

    @property
    def score_loss(self) -> float | None:
        """How much worse the worst score is than the eager model's, as a fraction; None where none was measured."""
        if self.scores is None:
            return None
        return max((self.scores.compute_loss(name) for name in self.scores.values if name != EAGER), default=None)

    @property
    def passed(self) -> bool:
        """Whether at least one row passed and none failed; a skipped row proves nothing."""
        return self.count("passed") > 0 and self.count("failed") == 0

    def __bool__(self) -> bool:
        return self.passed

    @property
    def caveats(self) -> tuple[str, ...]:
        """What no check can find wrong: what both sides share, and what was computed in another way than in use."""
        found = []
        if assumed := self.environment.get("assumed"):
            found.append(
                f"Assumed: {assumed}. Original and exported model share this, so that no check can find it wrong."
            )
        if computed := self.environment.get("computed"):
            found.append(str(computed))
        return tuple(found)

    def count(self, status: Status) -> int:
        """Return the number of rows with this status."""
        return sum(row.status == status for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"passed": self.passed, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        """Return the text of ``report.json``: strict JSON, so without NaN and infinity."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
