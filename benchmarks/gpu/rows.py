"""The file of results: a line of JSON for each measurement, written when it was made.

Whoever is cut off leaves whole lines, and at most one that was not finished, which is dropped. What is there is not
measured again.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from flash_export.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

Kind = Literal["question", "limit", "forward", "decode", "branch"]
# What has to be the same for rows to stand side by side.
IDENTITY = ("device", "driver", "torch", "cuda", "sizes")


@dataclass(frozen=True)
class Row:
    """One measurement, or why there is none.

    Attributes:
        kind: ``question``: whether something works at all; ``limit``: what the card can do; ``forward``: a pass over a
            text; ``decode``: one step; ``branch``: the linear attention of all layers alone.
        candidate: What was measured, such as ``eager bf16``.
        seq_len: Tokens of the text, or before the step; 0 where there is no text.
        latency_ms: Median of the runs; None: it was not measured.
        low_ms: Lower end of the median's 95% interval.
        high_ms: Its upper end.
        first_ms: The first run, which compiles.
        runs: How many runs.
        value: Of a limit: floating-point operations, or bytes, a second.
        error: Largest difference from the eager model in fp32, as a fraction of its largest output; None: not compared.
        peak_mib: Most memory that PyTorch held on the GPU.
        clock_mhz: Of the GPU's multiprocessors, after the last run.
        reason: Why there is no measurement; of a question, the answer.
    """

    kind: Kind
    candidate: str
    seq_len: int = 0
    latency_ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    first_ms: float | None = None
    runs: int = 0
    value: float | None = None
    error: float | None = None
    peak_mib: float | None = None
    clock_mhz: int | None = None
    reason: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        """What it is a measurement of."""
        return self.kind, self.candidate, self.seq_len


class RowFile:
    """The file."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a line that was not finished is cut off.

        Raises:
            ConfigError: It is no file of results.
        """
        self.path = path
        self.environment: dict[str, Any] = {}
        self.rows: list[Row] = []
        self.read()

    def read(self) -> None:
        """Read the file anew: other processes may have written to it."""
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        try:
            first, *others = [json.loads(line) for line in whole.splitlines()] or [{"environment": {}}]
            self.environment = first["environment"]
            self.rows = [Row(**row) for row in others]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.path} is no file of results; name another with --output") from error

    def begin(self, environment: dict[str, Any]) -> None:
        """Write where is measured, or check that it is where the rows that are there were measured.

        Raises:
            ConfigError: They are of another card, driver or version.
        """
        if not self.environment:
            self.environment = environment
            self._append({"environment": environment})
            return
        for name in IDENTITY:
            found, wanted = environment.get(name), self.environment.get(name)
            if found != wanted:
                raise ConfigError(
                    f"{self.path} was measured with {name} {wanted}, here it is {found}; name another --output"
                )

    def add(self, row: Row) -> None:
        """Write a row; when this returns it is on the disk."""
        self.rows.append(row)
        self._append(asdict(row))

    def has(self, kind: str, candidate: str, seq_len: int = 0) -> bool:
        """Tell whether something was measured, or found not to work."""
        return any(row.key == (kind, candidate, seq_len) for row in self.rows)

    def find(self, kind: str, candidate: str, seq_len: int = 0) -> Row | None:
        """Return a measurement, if there is one."""
        return next(
            (row for row in self.rows if row.key == (kind, candidate, seq_len) and (row.latency_ms or row.value)), None
        )

    def _append(self, values: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(json.dumps(values).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
