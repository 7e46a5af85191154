"""Reports on disk: each file written whole or not at all, and read with all that can be wrong with it."""

from __future__ import annotations

from pathlib import Path

from flash_export.errors import ReportError
from flash_export.files import write_file
from flash_export.printable import encode_text
from flash_export.reading import build_record, read_json_object
from flash_export.report.html import render_html
from flash_export.validators.report.validation import describe_validation
from flash_export.validators.results import REPORT_FORMAT_VERSION, ValidationReport

# What a folder of reports holds.
JSON_FILE, HTML_FILE = "report.json", "report.html"


def write_report(report: ValidationReport, folder: Path) -> None:
    """Write ``report.json`` and ``report.html`` into a folder; both are made before the first is written.

    Raises:
        BundleError: A file cannot be written.
    """
    page = encode_text(render_html(describe_validation(report)))
    write_file(folder / JSON_FILE, report.to_json().encode())
    write_file(folder / HTML_FILE, page)


def read_report(path: str | Path) -> ValidationReport:
    """Read a ``report.json``.

    Raises:
        ReportError: The file cannot be read, is no JSON, of another format version, or no report.
    """
    path, cure = Path(path), "give the report.json of 'flash-export validate'"
    values = read_json_object(path, ReportError, cure)
    version = values.get("format_version")
    if type(version) is not int or "rows" not in values:
        raise ReportError(f"{path} is no validation report; {cure}")
    if version != REPORT_FORMAT_VERSION:
        raise ReportError(
            f"{path} has format_version {version}, this version reads {REPORT_FORMAT_VERSION}; validate the bundle "
            "again"
        )
    facts = {name: value for name, value in values.items() if name != "passed"}
    return build_record(path, facts, ValidationReport, ReportError, "validate the bundle again")
