"""Writing a report to disk: each file whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.files import write_file
from flash_export.validators.report.html import render_html

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.validators.results import ValidationReport

JSON_FILE = "report.json"
HTML_FILE = "report.html"


def write_report(report: ValidationReport, folder: Path, json_copy: Path | None = None) -> Path:
    """Write ``report.json`` and ``report.html`` into a folder and return the path of the latter.

    Args:
        report: What a validation found.
        folder: Created when it does not exist.
        json_copy: Another file for the JSON.

    Raises:
        BundleError: A file cannot be written.
    """
    data, page = report.to_json().encode(), render_html(report).encode()
    write_file(folder / JSON_FILE, data)
    write_file(folder / HTML_FILE, page)
    if json_copy is not None:
        write_file(json_copy, data)
    return folder / HTML_FILE
