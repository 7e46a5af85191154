"""The report as JUnit XML, which CI systems show as tests: a suite a backend, a test case a row.

The time of a test case is the median time of one run of the backend, so that a CI system's history of times is one of
latencies; it is 0 where nothing was timed. What is there, and in which order, is what the schema of Ant's JUnit task
asks for, which most tools were written after, and what Jenkins accepts too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from flash_export.validators.report.claims import describe_check
from flash_export.validators.report.formatting import format_shape
from flash_export.validators.results import ACCURACY

if TYPE_CHECKING:
    from flash_export.validators.results import Row, ValidationReport

SUITE = "flash-export validate"
# What XML 1.0 cannot hold, not even as a reference.
_UNSPEAKABLE = re.compile(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TIMESTAMP_CHARACTERS = len("2026-01-01T00:00:00")


def render_junit(report: ValidationReport) -> bytes:
    """Return the XML in UTF-8."""
    root = ET.Element("testsuites")
    for index, backend in enumerate(dict.fromkeys(row.backend for row in report.rows)):
        rows = tuple(row for row in report.rows if row.backend == backend)
        attributes = {
            "name": backend,
            "id": str(index),
            "package": SUITE,
            "hostname": "localhost",
            "timestamp": str(report.environment.get("created", ""))[:_TIMESTAMP_CHARACTERS],
        }
        suite = ET.SubElement(root, "testsuite", {**_clean(attributes), **_count(rows)})
        properties = ET.SubElement(suite, "properties")
        for name, value in {"bundle": report.bundle, **report.environment}.items():
            ET.SubElement(properties, "property", _clean({"name": name, "value": str(value)}))
        for row in rows:
            _append_case(suite, row)
        ET.SubElement(suite, "system-out").text = _clean_text("\n".join(report.diagnosis))
        ET.SubElement(suite, "system-err")
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _append_case(suite: ET.Element, row: Row) -> None:
    what = "" if row.check == ACCURACY else f"{describe_check(row.check)}: "
    attributes = {
        "classname": f"{row.backend}.{row.check}",
        "name": f"{what}{format_shape(row)}",
        "time": _format_seconds(row),
    }
    case = ET.SubElement(suite, "testcase", _clean(attributes))
    reason = _clean_text(row.reason or "")
    if row.status == "failed":
        ET.SubElement(case, "failure", _clean({"message": reason, "type": row.check})).text = reason
    elif row.status == "skipped":
        ET.SubElement(case, "skipped", {"message": reason})


def _count(rows: tuple[Row, ...]) -> dict[str, str]:
    statuses = [row.status for row in rows]
    return {
        "tests": str(len(rows)),
        "failures": str(statuses.count("failed")),
        "errors": "0",
        "skipped": str(statuses.count("skipped")),
        "time": f"{sum(float(_format_seconds(row)) for row in rows):.3f}",  # Jenkins takes three decimals here
    }


def _format_seconds(row: Row) -> str:
    return f"{row.latency_ms.p50 / 1e3:.6f}" if row.latency_ms else "0"


def _clean(attributes: dict[str, str]) -> dict[str, str]:
    return {name: _clean_text(value) for name, value in attributes.items()}


def _clean_text(text: str) -> str:
    return _UNSPEAKABLE.sub("\N{REPLACEMENT CHARACTER}", text)
