"""``flash-export engine-report``: what TensorRT made of a graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flash_export.cli.options import REPORT, output_options
from flash_export.config import FORWARD

if TYPE_CHECKING:
    from flash_export.cli.output import Output
    from flash_export.exporters.engine_report.results import EngineReport


@click.command("engine-report", short_help="Show what TensorRT made of a graph, layer by layer.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--engine", metavar="NAME", help="Engine to report.  [default: the only one of the bundle]")
@click.option(
    "--graph",
    metavar="GRAPH",
    help="Graph to report alone, with the profile that an engine has by default.  [default: forward, if the bundle has "
    "no engine]",
)
@output_options(*REPORT)
def engine_report_command(output: Output, bundle: Path, engine: str | None, graph: str | None) -> EngineReport:
    """Show what TensorRT made of a graph of BUNDLE: its layers, where they came from, and what they cost.

    Layers by type, dtype and block of the model, with the ONNX nodes that they came from; weights, the largest tensors
    at each shape of the profiles, matrix products, casts. TensorRT parses the graph again for it, which needs no GPU.
    The layers of the engine itself, after fusion, are read where there is a GPU that it runs on.

    \b
    Examples:
      flash-export engine-report BUNDLE
      flash-export engine-report BUNDLE --engine ada --html engine.html
      flash-export engine-report BUNDLE --graph decode
      flash-export engine-report BUNDLE --json - -q | jq '.layers[0]'
    """
    from flash_export.bundle.bundle import Bundle
    from flash_export.exporters.engine_report.page import describe_engine_report
    from flash_export.exporters.engine_report.report import report_engine

    report = report_engine(Bundle.open(bundle), engine=engine, graph=graph)
    output.show(describe_engine_report(report))
    output.suggest_next(*_choose_next(report))
    return report


def _choose_next(report: EngineReport) -> tuple[str | Path, ...]:
    """Return what comes next: to build the engine, or to validate it."""
    if report.engine is not None and report.graph == FORWARD:
        return ("validate", report.bundle, "--backend", f"trt:{report.engine.name}")
    if report.engine is not None:
        return ("generate", report.bundle, "--backend", "trt", "--prompt", "TEXT")
    return ("trt", report.bundle, *(() if report.graph == FORWARD else ("--graph", report.graph)))
