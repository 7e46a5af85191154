"""The checks of a backend against itself as a table: what must hold, and whether it does on each backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.validators.invariances import INVARIANCES
from flash_export.validators.report.measures import select_invariances

if TYPE_CHECKING:
    from flash_export.validators.results import Row, ValidationReport

_CLAIMS = {invariance.name: invariance.claim for invariance in INVARIANCES} | {
    "symbolic-shape": "the graph must declare no fixed size for an axis that may be any"
}


@dataclass(frozen=True)
class Claim:
    """One property and its row on each backend.

    Attributes:
        name: Name of the check.
        text: What must hold, as a sentence.
        rows: A row a backend; None where the backend does not promise it.
    """

    name: str
    text: str
    rows: tuple[Row | None, ...]


@dataclass(frozen=True)
class ClaimTable:
    """All properties that were checked; true when there are any."""

    backends: tuple[str, ...]
    claims: tuple[Claim, ...]

    def __bool__(self) -> bool:
        return bool(self.claims)


def tabulate_claims(report: ValidationReport) -> ClaimTable:
    """Return the checks of the backends against themselves."""
    rows = {(row.check, row.backend): row for row in select_invariances(report)}
    backends = tuple(dict.fromkeys(backend for _, backend in rows))
    return ClaimTable(
        backends,
        tuple(
            Claim(name, describe_check(name), tuple(rows.get((name, backend)) for backend in backends))
            for name in dict.fromkeys(name for name, _ in rows)
        ),
    )


def describe_check(name: str) -> str:
    """Return what a check claims, as a sentence without its full stop.

    >>> describe_check("repeat")
    'The same input twice must give the same bits'
    """
    claim = _CLAIMS.get(name, name)
    return claim[:1].upper() + claim[1:]
