"""The report as one HTML file that needs no network, no script and no second file."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

import jinja2

from flash_export.validators.report import axes, formatting
from flash_export.validators.report.claims import tabulate_claims
from flash_export.validators.report.latency_plot import build_latency_plot
from flash_export.validators.report.measures import (
    compute_error_ratio,
    compute_noise_multiple,
    compute_relative_limit,
    has_noise,
    select_comparisons,
)
from flash_export.validators.report.plots import build_error_plot
from flash_export.validators.report.summary import name_agreement, summarize

if TYPE_CHECKING:
    from flash_export.validators.results import ValidationReport

TEMPLATE_FILE = "report.html.jinja"
STYLE_FILE = "report.css"


def render_html(report: ValidationReport) -> str:
    """Return the text of ``report.html``."""
    environment = make_environment()
    environment.filters.update(
        capital=formatting.capitalize,
        bytes=formatting.format_bytes,
        change=formatting.format_change,
        count=formatting.format_count,
        error=formatting.format_error,
        factor=formatting.format_factor,
        inputs=formatting.format_inputs,
        interval=formatting.format_interval,
        limit=compute_relative_limit,
        measured=lambda value, measure: formatting.format_measure(measure, value),
        named=formatting.name_measure,
        ms=formatting.format_ms,
        multiple=compute_noise_multiple,
        percent=formatting.format_percent,
        ratio=compute_error_ratio,
        score=lambda value, measure: formatting.format_score(measure, value),
        shape=formatting.format_shape,
        length_of=lambda count: formatting.format_length(count, report.unit),
    )
    comparisons = [row for row in select_comparisons(report) if row.seq_len is not None]
    return environment.get_template(TEMPLATE_FILE).render(
        report=report,
        summary=summarize(report),
        claims=tabulate_claims(report),
        comparisons=comparisons,
        shows_noise=has_noise(comparisons),
        agreement_heading=name_agreement(report),
        timings=[row for row in comparisons if row.latency_ms],
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
