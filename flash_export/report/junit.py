"""The checks of a report as JUnit XML, which CI systems show as tests: a suite per group, a test case per check.

The time of a test case is the median time of one run, so that a CI system's history of times is one of latencies; it
is 0 where nothing was timed. What is there, and in which order, is what the schema of Ant's JUnit task asks for, which
most tools were written after, and what Jenkins accepts too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from flash_export.report.document import Check, Document

# What XML 1.0 cannot hold, not even as a reference.
_UNSPEAKABLE = re.compile(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TIMESTAMP_CHARACTERS = len("2026-01-01T00:00:00")


def render_junit(document: Document) -> str:
    """Return the XML, to be stored in UTF-8."""
    root = ET.Element("testsuites")
    for index, group in enumerate(dict.fromkeys(check.group for check in document.checks)):
        checks = tuple(check for check in document.checks if check.group == group)
        attributes = {
            "name": group,
            "id": str(index),
            "package": document.command,
            "hostname": "localhost",
            "timestamp": str(dict(document.environment).get("created", ""))[:_TIMESTAMP_CHARACTERS],
        }
        suite = ET.SubElement(root, "testsuite", {**_clean(attributes), **_count(checks)})
        properties = ET.SubElement(suite, "properties")
        for name, value in (("subject", document.subject), *document.environment):
            ET.SubElement(properties, "property", _clean({"name": name, "value": str(value)}))
        for check in checks:
            _append_case(suite, check)
        ET.SubElement(suite, "system-out").text = _clean_text("\n".join(document.alarms))
        ET.SubElement(suite, "system-err")
    ET.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _append_case(suite: ET.Element, check: Check) -> None:
    attributes = {
        "classname": f"{check.group}.{check.kind}",
        "name": check.name,
        "time": f"{check.seconds:.6f}" if check.seconds else "0",
    }
    case = ET.SubElement(suite, "testcase", _clean(attributes))
    reason = _clean_text(check.reason)
    if check.status == "failed":
        ET.SubElement(case, "failure", _clean({"message": reason, "type": check.kind})).text = reason
    elif check.status == "skipped":
        ET.SubElement(case, "skipped", {"message": reason})


def _count(checks: tuple[Check, ...]) -> dict[str, str]:
    statuses = [check.status for check in checks]
    return {
        "tests": str(len(checks)),
        "failures": str(statuses.count("failed")),
        "errors": "0",
        "skipped": str(statuses.count("skipped")),
        "time": f"{sum(check.seconds for check in checks):.3f}",  # Jenkins takes three decimals here
    }


def _clean(attributes: dict[str, str]) -> dict[str, str]:
    return {name: _clean_text(value) for name, value in attributes.items()}


def _clean_text(text: str) -> str:
    return _UNSPEAKABLE.sub("\N{REPLACEMENT CHARACTER}", text)
