"""What a validation found, as frozen dataclasses with the JSON form that docs/report-format.md describes."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from flash_export.validators.latency import Percentiles

REPORT_FORMAT_VERSION = 1

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Row:
    """One backend at one shape.

    A skipped backend has one row with a batch and length of None: none of its shapes was tried.

    Attributes:
        reason: Why the row failed or was skipped, or what is missing from a row that passed.
        max_abs_error: Largest absolute difference from the eager model.
        max_rel_error: The same as a fraction of the largest expected magnitude.
        tolerance: Largest accepted absolute difference.
        latency_ms: Latency of the backend.
        eager_latency_ms: Latency of the eager model, measured in turn with the backend.
        speedup: How many times faster the backend is, by the medians.
    """

    backend: str
    graph: str
    batch: int | None
    seq_len: int | None
    masked: bool
    status: Status
    reason: str | None = None
    max_abs_error: float | None = None
    max_rel_error: float | None = None
    tolerance: float | None = None
    latency_ms: Percentiles | None = None
    eager_latency_ms: Percentiles | None = None
    speedup: float | None = None

    def __bool__(self) -> bool:
        return self.status == "passed"


@dataclass(frozen=True)
class ValidationReport:
    """Everything that a validation found; true when something passed and nothing failed."""

    bundle: str
    environment: dict[str, str | int]
    rows: tuple[Row, ...]
    bits_per_byte: dict[str, float] | None = None
    format_version: int = REPORT_FORMAT_VERSION

    @property
    def passed(self) -> bool:
        """Whether at least one row passed and none failed; a skipped row proves nothing."""
        return self.count("passed") > 0 and self.count("failed") == 0

    def __bool__(self) -> bool:
        return self.passed

    def count(self, status: Status) -> int:
        """Return the number of rows with this status."""
        return sum(row.status == status for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"passed": self.passed, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        """Return the text of ``report.json``: strict JSON, so without NaN and infinity."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
