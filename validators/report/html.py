"""The report as one HTML file that needs no network, no script and no second file."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

import jinja2

from flash_export.validators.report import axes
from flash_export.validators.report.plots import build_error_plot, build_latency_plot
from flash_export.validators.report.summary import (
    compute_error_ratio,
    format_factor,
    format_ms,
    format_percent,
    format_shape,
    summarize,
)

if TYPE_CHECKING:
    from flash_export.validators.results import ValidationReport

TEMPLATE_FILE = "report.html.jinja"
STYLE_FILE = "report.css"


def render_html(report: ValidationReport) -> str:
    """Return the text of ``report.html``."""
    environment = make_environment()
    environment.filters.update(
        percent=format_percent, factor=format_factor, ms=format_ms, shape=format_shape, ratio=compute_error_ratio
    )
    return environment.get_template(TEMPLATE_FILE).render(
        report=report,
        summary=summarize(report),
        plots=[plot for plot in (build_error_plot(report), build_latency_plot(report)) if plot],
    )


def make_environment() -> jinja2.Environment:
    """Return what pages are made with: the templates of this package, and for all of them the style and the axes."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(style=_read(STYLE_FILE), axes=axes)
    return environment


def _read(name: str) -> str:
    return resources.files("flash_export.validators.report").joinpath(name).read_text(encoding="utf-8")
