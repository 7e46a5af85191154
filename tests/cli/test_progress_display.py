"""Progress on a terminal, elsewhere, with ``-q`` and in the log."""

from __future__ import annotations

import io
import logging
import sys
import time
from typing import TYPE_CHECKING

from flash_export.cli import progress_display
from flash_export.cli.progress_display import show_progress

if TYPE_CHECKING:
    import pytest

PATIENCE_S = 30.0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def wait_for(text: str, capsys: pytest.CaptureFixture[str]) -> bool:
    """Wait until a text was shown."""
    shown, end = "", time.monotonic() + PATIENCE_S
    while text not in shown and time.monotonic() < end:
        time.sleep(0.002)
        shown += capsys.readouterr().err
    return text in shown


def test_without_a_terminal_a_line_says_what_is_under_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_display, "FIRST_LINE_S", 0.001)
    monkeypatch.setattr(progress_display, "LINE_INTERVAL_S", 0.001)
    with show_progress("Quantizing", quiet=False) as progress:
        assert wait_for("Quantizing: loading, after ", capsys)
        progress(1, 4, "layers.0.out")
        assert wait_for("Quantizing: 25%, layers.0.out, after ", capsys)
        progress(0, 0, "done")
        assert wait_for("Quantizing: 100%, done, after ", capsys), "nothing was to be done"
    capsys.readouterr()
    time.sleep(0.01)
    assert capsys.readouterr().err == "", "it goes on after the end"


def test_what_is_done_soon_needs_no_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_display, "FIRST_LINE_S", PATIENCE_S)
    with show_progress("Quantizing", quiet=False) as progress:
        progress(0, 1, "tracing")
    assert capsys.readouterr() == ("", "")


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_display, "FIRST_LINE_S", 0.001)
    with show_progress("Quantizing", quiet=True) as progress:
        progress(0, 1, "tracing")
        time.sleep(0.01)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with show_progress("Quantizing", quiet=False) as progress:
        progress(1, 4, "layers.0[/red]")
    assert "Quantizing" in terminal.getvalue()
    assert "layers.0[/red]" in terminal.getvalue()


def test_the_log_says_how_long_each_stage_took(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress_display, "MIN_LOGGED_S", 0.0)
    with caplog.at_level(logging.DEBUG, "flash_export"), show_progress("Exporting", quiet=True) as progress:
        progress(0, 2, "tracing")
        progress(1, 2, "writing")
    stages = [record.getMessage().partition(" took ")[0] for record in caplog.records]
    assert stages == ["Exporting: loading", "Exporting: tracing", "Exporting: writing"]
    assert capsys.readouterr() == ("", "")
