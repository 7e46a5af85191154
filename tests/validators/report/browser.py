"""A real browser that shows a page from disk, for the tests of the pages."""

from __future__ import annotations

import json
import shutil
import subprocess
import zlib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in BROWSERS if (path := shutil.which(name))), None)
NO_ORIGIN = "not an origin"
# Blink's preferredColorScheme, and the page's own background.
THEMES = {"dark": ("0", (0x16, 0x16, 0x15)), "light": ("1", (0xFC, 0xFC, 0xFA))}

needs_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install chromium"),
]


def browse(page: Path | str, folder: Path, *arguments: str) -> str:
    """Return what the browser prints of a page: a file, or an address on this machine."""
    assert CHROMIUM is not None
    quiet = ("background-networking", "component-update", "sync", "gpu", "default-apps", "domain-reliability")
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",  # containers have no user namespaces, and the page is ours
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # what the browser itself asks for stays here
        f"--user-data-dir={folder / 'profile'}",
        *(f"--disable-{name}" for name in quiet),
        *arguments,
        page if isinstance(page, str) else page.as_uri(),
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


def list_requests(page: Path, folder: Path) -> list[str]:
    """Return the addresses that a page asked for, other than files; what the browser asks for itself has no origin."""
    log = folder / "net.json"
    browse(page, folder, f"--log-net-log={log}", "--dump-dom")
    asked = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    of_page = [str(one["url"]) for one in asked if "url" in one and one.get("initiator", NO_ORIGIN) != NO_ORIGIN]
    return [url for url in of_page if not url.startswith(("file:", "data:"))]
