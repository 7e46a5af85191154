"""The page of a comparison in a real browser: names can be read, in light and dark, and nothing is fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from flash_export.report.html import render_html
from flash_export.validators.trade_off.page import describe_trade_off
from tests.validators.report.browser import THEMES, browse, list_requests, needs_browser, read_image
from tests.validators.trade_off.builders import FULL

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_browser


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "trade-off.html"
    path.write_text(render_html(describe_trade_off(FULL)))
    return path


def test_content_is_there_and_nothing_is_fetched(page: Path, tmp_path: Path) -> None:
    document = browse(page, tmp_path, "--dump-dom")
    assert document.count("<figure>") == 6
    assert document.count(">int8</text>") == 6
    assert "</html>" in document
    assert list_requests(page, tmp_path) == []


@pytest.mark.parametrize("theme", THEMES)
def test_page_is_drawn_in_both_themes(page: Path, tmp_path: Path, theme: str) -> None:
    scheme, background = THEMES[theme]
    shot = tmp_path / "shot.png"
    setting = f"--blink-settings=preferredColorScheme={scheme}"
    browse(page, tmp_path, f"--screenshot={shot}", "--window-size=1200,1400", setting)

    image = read_image(shot)
    assert tuple(image[1:4]) == background
    assert len(set(image)) > 100  # a blank page has a handful of different bytes
