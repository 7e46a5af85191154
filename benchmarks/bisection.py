"""Where bisect finds planted faults: in which block and at which quantity, and whether that is where they are.

    python benchmarks/bisection.py [--only TEXT] [--json FILE] [--quick]

Every fault of ``faults.py`` is planted in the bundled models that can have it.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from faults import BOTH, FAULTS, Fault, plant
from report import make_parser, print_table, write_json

import flash_export
from flash_export.config import ExportOptions
from flash_export.exporters.export import export_onnx
from flash_export.validators.bisect.bisect import BisectOptions, bisect_bundle

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle

ASSETS = Path(flash_export.__file__).parent / "assets"
NO_RUN = "no run"


@dataclass(frozen=True)
class Finding:
    """What bisect says of one fault.

    Attributes:
        name: The fault.
        model: The bundled model.
        planted: Where it is, as ``layers.3.kv``, several being right where it has no one place; empty: anywhere.
        found: Where it was found; ``no run`` if the graph does not run, None if nothing was found.
        run: The input that it was found with.
        error: Relative error there; None where it is infinite or the graph does not run.
        limit: What was accepted.
        note: What bisect says besides.
    """

    name: str
    model: str
    planted: tuple[str, ...]
    found: str | None
    run: str = ""
    error: float | None = None
    limit: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """``in place``, ``elsewhere``, ``found`` (a fault that has no one place), or ``not found``."""
        if self.found is None:
            return "not found"
        if not self.planted:
            return "found"
        return "in place" if self.found in self.planted else "elsewhere"


def list_places(fault: Fault) -> tuple[str, ...]:
    """Return the names of the quantities at which a fault may be found first."""
    prefix = "" if fault.block is None else f"layers.{fault.block}."
    return tuple(f"{prefix}{quantity}" for quantity in fault.quantities)


def bisect_fault(fault: Fault, model: str, bundle: Bundle) -> Finding:
    """Bisect a bundle with a fault in it."""
    report = bisect_bundle(bundle, BisectOptions())
    run, row = report.shown_run, report.shown_run.fault
    if row is None:
        return Finding(fault.name, model, list_places(fault), NO_RUN if run.failure else None, str(run))
    return Finding(fault.name, model, list_places(fault), row.name, str(run), row.error, row.limit, row.note)


def bisect_faults(folder: Path, only: str, models: tuple[str, ...]) -> list[Finding]:
    """Plant every fault and bisect."""
    findings = []
    for model in models:
        bundle = export_onnx(ASSETS / f"byte-{model}", folder / model, options=ExportOptions(graphs=("forward",)))
        for index, fault in enumerate(fault for fault in FAULTS if model in fault.models and only in fault.name):
            print(f"{model}: {fault.name} ...", flush=True)
            with tempfile.TemporaryDirectory(dir=folder) as copy:
                findings.append(bisect_fault(fault, model, plant(fault, bundle, Path(copy) / str(index))))
    return findings


def main(arguments: list[str] | None = None) -> None:
    """Bisect, print, write."""
    parser = make_parser(__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="the faults whose name contains this")
    options = parser.parse_args(arguments)
    models, only = (BOTH[:1], "one weight of the values") if options.quick else (BOTH, options.only)
    with tempfile.TemporaryDirectory() as folder:
        findings = bisect_faults(Path(folder), only, models)
    print_table(
        "Planted faults",
        ("fault", "model", "found at", "error", "limit", "verdict", "note"),
        [
            (
                one.name,
                one.model,
                one.found or "",
                "" if one.error is None else f"{one.error:.1e}",
                "" if one.limit is None else f"{one.limit:.1e}",
                one.verdict,
                one.note,
            )
            for one in findings
        ],
    )
    verdicts = [one.verdict for one in findings]
    print(", ".join(f"{verdicts.count(kind)} {kind}" for kind in ("in place", "found", "elsewhere", "not found")))
    write_json(options.json, {"findings": [{**asdict(one), "verdict": one.verdict} for one in findings]})


if __name__ == "__main__":
    main()
