"""What a comparison of bundles found, as frozen dataclasses with a JSON form.

What could not be measured has a reason in place of a figure, everywhere.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from flash_export.config import FORWARD
from flash_export.tasks.base import Measure  # noqa: TC001 (its fields are read as a schema, as those below)
from flash_export.validators.footprint import Footprint  # noqa: TC001
from flash_export.validators.latency import Percentiles, Ratio  # noqa: TC001


@dataclass(frozen=True)
class Quality:
    """How far the predictions of a bundle are from those of the model in float64.

    Attributes:
        reason: Why there are no figures; None when there are.
        score: On the held-out data, such as bits per byte; None where nothing says what should be predicted.
        change: How much more that is than the reference bundle's, as a fraction of it.
        measures: What the task measures of the difference from the model, by name.
    """

    reason: str | None = None
    score: float | None = None
    change: float | None = None
    measures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Timing:
    """How long a run takes, measured in turn with the other bundles.

    Attributes:
        seq_len: Length that the forward graph reads; None for a decode step.
        reason: Why there are no figures; None when there are.
        latency_ms: Of one run.
        ratio: How many times as long as the reference bundle's; None where that was not measured.
    """

    seq_len: int | None
    reason: str | None = None
    latency_ms: Percentiles | None = None
    ratio: Ratio | None = None


@dataclass(frozen=True)
class Entry:
    """One bundle.

    Attributes:
        name: Short name, unique in the comparison.
        path: The folder, as it was given.
        precision: Of its forward graph.
        graph_bytes: Size of each graph with the weights that it reads, by name.
        size_ratio: Size of the forward graph as a fraction of the reference bundle's.
        quality: What its predictions are worth.
        timings: Of the forward graph, by length; empty when nothing was timed.
        decode: Of a decode step; None when it was not timed, or no bundle has such a graph.
        footprint: What it costs in a process of its own; None when nothing was timed.
    """

    name: str
    path: str
    precision: str
    graph_bytes: dict[str, int]
    size_ratio: float
    quality: Quality
    timings: tuple[Timing, ...] = ()
    decode: Timing | None = None
    footprint: Footprint | None = None

    @property
    def size_bytes(self) -> int:
        """Size of the forward graph with its weights."""
        return self.graph_bytes[FORWARD]

    @property
    def all_timings(self) -> tuple[Timing, ...]:
        """Those of the forward graph, then that of a decode step."""
        return self.timings if self.decode is None else (*self.timings, self.decode)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Everything that is missing, each once."""
        found = {self.quality.reason: None}
        for timing in self.all_timings:
            found[timing.reason] = None
        if self.footprint is not None:
            found[self.footprint.reason] = None
        return tuple(reason for reason in found if reason)

    def __bool__(self) -> bool:
        return not self.reasons


@dataclass(frozen=True)
class TradeOff:
    """Several bundles of one model; true when nothing is missing.

    Attributes:
        entries: The bundles, the reference first.
        data: What they read, such as ``held-out text`` or ``random tokens``.
        unit: What lengths count, such as ``tokens``.
        measures: What the task measures, in the order in which it is shown.
        score: What the score is; None where there is none.
        predictions: How many predictions were compared.
        reference_score: Of the model in float64; None where there is none.
        batch: Rows of a timed run.
        backend: Where all ran.
        environment: Facts of the model, versions, hardware.
    """

    entries: tuple[Entry, ...]
    data: str
    unit: str
    measures: tuple[Measure, ...]
    score: Measure | None
    predictions: int
    reference_score: float | None
    batch: int
    backend: str
    environment: dict[str, str | int]

    def __bool__(self) -> bool:
        return all(self.entries)

    @property
    def reference(self) -> Entry:
        """What the others are compared with."""
        return self.entries[0]

    def get_entry(self, name: str) -> Entry:
        """Return the bundle of a name."""
        return next(entry for entry in self.entries if entry.name == name)

    def to_json(self) -> str:
        """Return strict JSON."""
        values: dict[str, Any] = {"complete": bool(self), **dataclasses.asdict(self)}
        return json.dumps(values, indent=2, allow_nan=False) + "\n"
