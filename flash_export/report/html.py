"""A report as one HTML file that needs no network, no script and no second file."""

from __future__ import annotations

import functools
from importlib import resources
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup, escape

from flash_export.report import drawing
from flash_export.report.document import Styled

if TYPE_CHECKING:
    from flash_export.report.document import Cell, Document

TEMPLATE_FILE = "report.html.jinja"
STYLE_FILE = "report.css"


def render_html(document: Document) -> str:
    """Return the text of the page."""
    sections = document.list_sections("page")
    return _load_template().render(document=document, sections=sections, style=Markup(_read(STYLE_FILE)), axes=drawing)


@functools.cache
def _load_template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(code=_mark_code, draw=drawing.draw_plot, read=_read_cell)
    environment.tests["styled"] = lambda cell: isinstance(cell, Styled)
    return environment.get_template(TEMPLATE_FILE)


def _mark_code(text: str) -> Markup:
    """Escape text, with what stands between two backticks as code."""
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 and index < len(parts) - 1 else escape(part)
        for index, part in enumerate(parts)
    )


def _read_cell(cell: Cell) -> str:
    return "\N{EN DASH}" if cell is None else cell.text if isinstance(cell, Styled) else cell


def _read(name: str) -> str:
    return resources.files("flash_export.report").joinpath(name).read_text(encoding="utf-8")
