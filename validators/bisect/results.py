"""What a bisection found, as frozen dataclasses with a JSON form."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal

from flash_export.config import FORWARD
from flash_export.probes import Point

ProbeStatus = Literal["clean", "wrong", "infinite", "missing"]


@dataclass(frozen=True)
class ProbeRow:
    """One quantity in one run; true unless it is wrong.

    Attributes:
        name: The quantity, such as ``layers.3.kv``.
        tensor: Name of the value in the graph.
        status: ``clean``, ``wrong``, ``infinite`` (NaN or infinity) or ``missing`` (the graph has no such value).
        error: Largest difference from the reference, as a fraction of its largest magnitude; None if there is none.
        noise: The same of the eager model in the graph's precision; None if it overflows, or where two graphs are
            compared.
        limit: Largest accepted error.
        note: What is off, in a few words.
        label: What the model calls it, such as ``linear key-value sum``.
    """

    name: str
    tensor: str
    status: ProbeStatus
    error: float | None = None
    noise: float | None = None
    limit: float | None = None
    note: str = ""
    label: str = ""

    def __bool__(self) -> bool:
        return self.status in ("clean", "missing")

    @property
    def block(self) -> int | None:
        """The block that it belongs to; None if it is around them."""
        return Point.parse(self.name).block

    @property
    def title(self) -> str:
        """Name it in the model's terms.

        >>> ProbeRow("layers.7.kv", "kv", "clean", label="linear key-value sum").title
        'block 7, linear key-value sum'
        """
        return self.label if self.block is None else f"block {self.block}, {self.label}"

    @property
    def ratio(self) -> float | None:
        """The error as a fraction of its limit: above 1 it is wrong."""
        return None if self.error is None or not self.limit else self.error / self.limit


@dataclass(frozen=True)
class Run:
    """One input through the reference and the graph; true when the graph runs and no quantity is wrong.

    Attributes:
        failure: Why the graph did not run, in one line; empty if it did.
        starts: Tokens of each row that were read before, of a graph that carries a state.
    """

    batch: int
    seq_len: int
    masked: bool
    rows: tuple[ProbeRow, ...]
    failure: str = ""
    starts: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return self.fault is None and not self.failure

    def __str__(self) -> str:
        starts = f" from {', '.join(map(str, self.starts))}" if self.starts else ""
        return f"{self.batch} x {self.seq_len}{' masked' if self.masked else ''}{starts}"

    @property
    def fault(self) -> ProbeRow | None:
        """The first quantity that is wrong."""
        return next((row for row in self.rows if not row), None)


@dataclass(frozen=True)
class BisectReport:
    """Everything that a bisection found; true when no quantity is wrong in any run.

    Attributes:
        bundle: The bundle whose graph was read.
        reference: What it was compared with: ``float64 model``, or another bundle.
        backend: What ran the graph.
        runs: The runs; the last one is the one with the fault, if there is any.
        graph: Name of the graph.
    """

    bundle: str
    reference: str
    backend: str
    runs: tuple[Run, ...]
    graph: str = FORWARD

    def __bool__(self) -> bool:
        return all(self.runs)

    @property
    def shown_run(self) -> Run:
        """The run that tells most: the one with the fault, else the first."""
        return next((run for run in self.runs if not run), self.runs[0])

    def to_json(self) -> str:
        """Return strict JSON, with the finding in words."""
        from flash_export.validators.bisect.summary import describe_finding

        values: dict[str, Any] = {"clean": bool(self), "finding": describe_finding(self), **dataclasses.asdict(self)}
        return json.dumps(values, indent=2, allow_nan=False) + "\n"
