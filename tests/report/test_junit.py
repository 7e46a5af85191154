"""The XML against the schema of Ant's JUnit task, spelled out, and what CI systems read from it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from flash_export.report.junit import render_junit
from flash_export.validators.report.validation import describe_validation
from tests.validators.report.builders import CRASHED, FULL, MIXED, QUANTIZED, SKIPPED, make_passed, make_report

if TYPE_CHECKING:
    from flash_export.validators.results import ValidationReport

# Element: attributes that it must have, attributes that it may have, children in their order.
SCHEMA: dict[str, tuple[set[str], set[str], list[str]]] = {
    "testsuites": (set(), set(), ["testsuite"]),
    "testsuite": (
        {"name", "timestamp", "hostname", "tests", "failures", "errors", "time", "package", "id"},
        {"skipped"},
        ["properties", "testcase", "system-out", "system-err"],
    ),
    "properties": (set(), set(), ["property"]),
    "property": ({"name", "value"}, set(), []),
    "testcase": ({"name", "classname", "time"}, set(), ["skipped", "failure"]),
    "failure": ({"type"}, {"message"}, []),
    "skipped": (set(), {"message"}, []),
    "system-out": (set(), set(), []),
    "system-err": (set(), set(), []),
}
ONCE = {"properties", "system-out", "system-err", "skipped", "failure"}
WHOLE, DECIMAL = re.compile(r"\d+"), re.compile(r"\d+(\.\d+)?")
FORMS = dict.fromkeys(("tests", "failures", "errors", "skipped", "id"), WHOLE) | {
    "time": DECIMAL,
    "timestamp": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"),
    "name": re.compile(r".+"),
}


def check_element(element: ET.Element) -> None:
    required, optional, children = SCHEMA[element.tag]
    assert required <= set(element.keys()) <= required | optional, element.tag
    for name, value in element.items():
        assert FORMS.get(name, re.compile(r".*", re.DOTALL)).fullmatch(value), (element.tag, name, value)
    found = [child.tag for child in element]
    assert found == sorted(found, key=children.index)
    assert all(found.count(tag) <= 1 for tag in ONCE)
    for child in element:
        check_element(child)


@pytest.mark.parametrize("report", [FULL, MIXED, make_report(SKIPPED), make_report()])
def test_xml_has_the_shape_that_ci_systems_read(report: ValidationReport) -> None:
    root = ET.fromstring(render_junit(describe_validation(report)))
    assert root.tag == "testsuites"
    check_element(root)
    for suite in root:
        assert re.fullmatch(r"\d+\.\d{3}", suite.get("time", ""))  # Jenkins takes no more decimals of a suite
        assert int(suite.get("tests", "")) == len(suite.findall("testcase"))
        assert int(suite.get("failures", "")) == len(suite.findall("testcase/failure"))
        assert int(suite.get("skipped", "")) == len(suite.findall("testcase/skipped"))
    assert sum(len(suite.findall("testcase")) for suite in root) == len(report.rows)


def test_backend_is_a_suite_and_a_row_a_case() -> None:
    ours, skipped, _ = ET.fromstring(render_junit(describe_validation(FULL)))
    assert [suite.get("name") for suite in (ours, skipped)] == ["ort-cpu", "trt:big"]
    properties = {one.get("name"): one.get("value") for one in ours.iter("property")}
    assert properties["torch"] == "2.13"
    assert properties["chunk_size"] == "128"
    assert properties["bundle"] == "bundle"
    first, *_ = ours.findall("testcase")
    assert first.attrib == {"classname": "ort-cpu.accuracy", "name": "batch 1, length 257", "time": "0.002000"}
    (claim,) = (case for case in ours.findall("testcase") if case.get("classname") == "ort-cpu.repeat")
    assert claim.get("name") == "The same input twice must give the same bits: batch 3, length 321"
    assert ours.findtext("system-out") == FULL.diagnosis[0]


def test_reasons_are_told() -> None:
    suites = ET.fromstring(render_junit(describe_validation(MIXED)))
    failures = [failure.get("message") for failure in suites.iter("failure")]
    assert failures == ["max abs error 0.5 exceeds it", "Fail: <b>bad</b> & worse"]
    assert [skipped.get("message") for skipped in suites.iter("skipped")] == ["no CUDA device here"]


def test_characters_that_xml_cannot_hold_are_replaced() -> None:
    data = render_junit(
        describe_validation(make_report(make_passed(), replace(CRASHED, reason="a\x1b[31m\x00b\ud800")))
    )
    (failure,) = ET.fromstring(data).iter("failure")
    assert failure.get("message") == "a\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"


def test_name_of_a_check_cannot_break_the_xml() -> None:
    """A report is a file, so that its check may be anything."""
    data = render_junit(describe_validation(make_report(make_passed(), replace(CRASHED, check="a\x00b"))))
    (failure,) = ET.fromstring(data).iter("failure")
    assert failure.get("type") == "a\N{REPLACEMENT CHARACTER}b"


def test_quantized_bundle_says_what_it_may_lose() -> None:
    suite = next(iter(ET.fromstring(render_junit(describe_validation(QUANTIZED)))))
    properties = {one.get("name"): one.get("value") for one in suite.iter("property")}
    assert (properties["precision"], properties["accepted_loss"]) == ("int8", "0.50%")
