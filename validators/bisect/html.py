"""A bisection as one HTML file that needs no network, no script and no second file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.validators.bisect.plot import build_depth_plot
from flash_export.validators.bisect.summary import describe_finding
from flash_export.validators.report.html import make_environment

if TYPE_CHECKING:
    from flash_export.validators.bisect.results import BisectReport

TEMPLATE_FILE = "bisect.html.jinja"


def render_bisection(report: BisectReport) -> str:
    """Return the text of the page."""
    run = report.shown_run
    return (
        make_environment()
        .get_template(TEMPLATE_FILE)
        .render(
            report=report,
            clean=bool(report),
            run=run,
            finding=describe_finding(report),
            plot=build_depth_plot(run),
            has_noise=any(row.noise is not None for row in run.rows),
        )
    )
