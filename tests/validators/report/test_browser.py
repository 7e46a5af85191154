"""A real report in a real browser, from disk: the content is there, in light and dark, and nothing is fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from flash_export.validators.report.files import HTML_FILE, write_report
from flash_export.validators.validate import validate_bundle
from flash_export.validators.validation_options import ValidationOptions
from tests.validators.report.browser import THEMES, browse, list_requests, needs_browser, read_image

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle

pytestmark = needs_browser


@pytest.fixture(scope="module")
def page(pristine_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    report = validate_bundle(pristine_bundle, ValidationOptions(threads=1, latency_budget_s=0.02))
    folder = tmp_path_factory.mktemp("report")
    write_report(report, folder)
    return folder / HTML_FILE


def test_content_is_there(page: Path, tmp_path: Path) -> None:
    document = browse(page, tmp_path, "--dump-dom")
    for text in (
        "The exported model gives the same answers as the original.",
        "Largest error",
        "Same top token",
        "PyTorch's",
        "Error by length",
        "Latency by length",
        "What must hold of any model",
        "In a fresh process",
        "How to read this",
        "</html>",
    ):
        assert text in document
    assert document.count("<svg") > 2


def test_nothing_is_fetched(page: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.html"
    other.write_text('<img src="http://127.0.0.1:9/seen.png">')
    assert list_requests(other, tmp_path) == ["http://127.0.0.1:9/seen.png"], "this test cannot see requests"
    assert list_requests(page, tmp_path) == []


@pytest.mark.parametrize("theme", THEMES)
def test_page_is_drawn_in_both_themes(page: Path, tmp_path: Path, theme: str) -> None:
    scheme, background = THEMES[theme]
    shot = tmp_path / "shot.png"
    browse(
        page, tmp_path, f"--screenshot={shot}", "--window-size=1200,1400",
        f"--blink-settings=preferredColorScheme={scheme}",
    )  # fmt: skip

    image = read_image(shot)
    assert tuple(image[1:4]) == background
    assert len(set(image)) > 100  # a blank page has a handful of different bytes
