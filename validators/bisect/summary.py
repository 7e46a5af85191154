"""What a bisection found, in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from flash_export.formatting import capitalize, format_percent

if TYPE_CHECKING:
    from flash_export.validators.bisect.results import BisectReport, ProbeRow, Run


def describe_finding(report: BisectReport) -> str:
    """Return the one sentence that a reader wants first."""
    run = report.shown_run
    if run.failure:
        return f"The graph does not run at {run}, so that nothing in it can be read: {run.failure}"
    if run.fault is None:
        return _describe_clean(report)
    return f"{capitalize(describe_fault(run, run.fault))} (at {run})"


def describe_fault(run: Run, fault: ProbeRow) -> str:
    """Say what is wrong first, how wrong, and how right everything before it is."""
    if fault.status == "infinite":
        size = "infinite or not a number"
    elif fault.error is None:
        size = fault.note
    else:
        size = f"relative error {fault.error:.1e}, {format_ratio(fault)} the limit"
    note = f" ({fault.note})" if fault.note and size != fault.note else ""
    floor = "its limit" if fault.noise is None else "the noise floor"
    before = [row.error for row in run.rows[: run.rows.index(fault)] if row.error is not None]
    rest = f"everything before is {_describe_size(max(before))}" if before else "there is nothing before it"
    return f"{fault.title}: {size}{note}; it is the first point above {floor}, {rest}"


def pick_worst(rows: list[ProbeRow]) -> ProbeRow:
    """Return the row that is furthest above its limit, or nearest to it; a broken one before any."""
    return max(rows, key=lambda row: (row.status == "infinite", not row, row.ratio or 0.0))


def group_by_block(run: Run) -> list[list[ProbeRow]]:
    """Return the rows of each block in turn; what is around the blocks stands by itself."""
    groups: dict[str, list[ProbeRow]] = {}
    for row in run.rows:
        key = row.name if row.block is None else str(row.block)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def format_ratio(row: ProbeRow) -> str:
    """Format the error in units of its limit.

    >>> from flash_export.validators.bisect.results import ProbeRow
    >>> format_ratio(ProbeRow("kv", "kv", "wrong", error=1.0, limit=1e-3))
    '1,000 times'
    """
    ratio = row.ratio or 0.0
    return format_times(ratio) if ratio >= 2 else f"{format_times(ratio)} of"


def format_times(ratio: float) -> str:
    """Format a ratio that may be very large.

    >>> format_times(0.05), format_times(3.25), format_times(121794.0)
    ('5.0%', '3.2 times', '1.2e+05 times')
    """
    return format_percent(ratio) if ratio < 1e4 else f"{ratio:.1e} times"


def _describe_clean(report: BisectReport) -> str:
    rows = [row for run in report.runs for row in run.rows]
    compared = [row for row in rows if row.error is not None]
    worst = pick_worst(compared)
    names = len({row.name for row in compared})
    missing = len({row.name for row in rows if row.status == "missing"})
    return (
        f"No fault found: {names} quantities are within their limits at {', '.join(map(str, report.runs))}; the "
        f"nearest to its own is {worst.title} with {format_ratio(worst)} it"
        + (f"; {missing} quantities are not in the graph and were not compared" if missing else "")
    )


def _describe_size(error: float) -> str:
    """Say what an error is below: a power of ten times 1, 2 or 5.

    >>> _describe_size(1.3e-7), _describe_size(0.0)
    ('below 2e-07', 'equal')
    """
    if error == 0:
        return "equal"
    power = math.floor(math.log10(error))
    digit = next((digit for digit in (1, 2, 5) if error <= digit * 10.0**power), 10)
    return f"below {digit * 10.0**power:.0e}"
