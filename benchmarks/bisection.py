"""Where bisect finds planted faults: in which block and at which quantity, and whether that is where they are.

    python benchmarks/bisection.py [--only TEXT] [--json FILE] [--quick]

Every fault of ``harness/faults.py`` is planted in the bundled models that can have it.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from flash_export import BisectOptions, Bundle, bisect_bundle
from harness.faults import Fault, plant_faults
from harness.report import describe, make_parser, print_rows, write_json

NO_RUN = "no run"


@dataclass(frozen=True)
class Finding:
    """What bisect says of one fault."""

    name: str
    model: str
    planted: tuple[str, ...]  # as ``layers.3.kv``, several being right where it has no one place; empty: anywhere
    found: str | None  # ``no run`` if the graph does not run, None if nothing was found
    run: str = ""  # the input that it was found with
    error: float | None = None  # relative; None where it is infinite or the graph does not run
    limit: float | None = None  # what was accepted
    note: str = ""  # what bisect says besides

    @property
    def verdict(self) -> str:
        """``in place``, ``elsewhere``, ``found`` (a fault that has no one place), or ``not found``."""
        if self.found is None:
            return "not found"
        if not self.planted:
            return "found"
        return "in place" if self.found in self.planted else "elsewhere"


def bisect_fault(model: str, fault: Fault, bundle: Bundle) -> Finding:
    """Bisect a bundle with a fault in it."""
    run = bisect_bundle(bundle, BisectOptions()).shown_run
    if (row := run.fault) is None:
        return Finding(fault.name, model, fault.places, NO_RUN if run.failure else None, str(run))
    return Finding(fault.name, model, fault.places, row.name, str(run), row.error, row.limit, row.note)


def main(arguments: list[str] | None = None) -> None:
    """Bisect, print, write."""
    options = make_parser(__doc__, only="faults").parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        findings = [bisect_fault(*planted) for planted in plant_faults(options, Path(folder))]
    columns = {"fault": "name", "model": "model", "found at": "found", "error": "error:.1e", "limit": "limit:.1e"}
    print_rows("Planted faults", findings, columns | {"verdict": "verdict", "note": "note"})
    verdicts = Counter(one.verdict for one in findings)
    print(", ".join(f"{verdicts[kind]} {kind}" for kind in ("in place", "found", "elsewhere", "not found")))
    write_json(options.json, {"findings": [describe(one, "verdict") for one in findings]})


if __name__ == "__main__":
    main()
