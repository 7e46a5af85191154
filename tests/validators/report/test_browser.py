"""A real report in a real browser, from disk: the content is there, in light and dark, and nothing is fetched."""

from __future__ import annotations

import json
import shutil
import subprocess
import zlib
from typing import TYPE_CHECKING

import pytest

from flash_export.validators.report.files import ReportFiles, write_report
from flash_export.validators.validate import ValidationOptions, validate_bundle

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle import Bundle

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in BROWSERS if (path := shutil.which(name))), None)
NO_ORIGIN = "not an origin"
# Blink's preferredColorScheme, and the page's own background.
THEMES = {"dark": ("0", (0x16, 0x16, 0x15)), "light": ("1", (0xFC, 0xFC, 0xFA))}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install chromium"),
]


@pytest.fixture(scope="module")
def page(pristine_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    report = validate_bundle(pristine_bundle, ValidationOptions(threads=1, latency_budget_s=0.02))
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(report, ReportFiles(html=path))
    return path


def browse(page: Path, folder: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    quiet = ("background-networking", "component-update", "sync", "gpu", "default-apps", "domain-reliability")
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",  # containers have no user namespaces, and the page is ours
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND",  # what the browser itself asks for stays here
        f"--user-data-dir={folder / 'profile'}",
        *(f"--disable-{name}" for name in quiet),
        *arguments,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def read_image(path: Path) -> bytes:
    """Return the filtered scan lines of a PNG; those of the first pixel are its colour, whatever the filter."""
    data, position, lines = path.read_bytes(), 8, b""
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] == b"IDAT":
            lines += data[position + 8 : position + 8 + length]
        position += length + 12
    return zlib.decompress(lines)


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


def list_requests(page: Path, folder: Path) -> list[str]:
    """Return the addresses that a page asked for, other than files; what the browser asks for itself has no origin."""
    log = folder / "net.json"
    browse(page, folder, f"--log-net-log={log}", "--dump-dom")
    asked = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    of_page = [str(one["url"]) for one in asked if "url" in one and one.get("initiator", NO_ORIGIN) != NO_ORIGIN]
    return [url for url in of_page if not url.startswith(("file:", "data:"))]


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
