"""Where the words of a command go: stdout, stderr, the log, and what comes next."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from flash_export.cli.main import main
from flash_export.cli.output import Output, format_command

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle


def test_a_command_is_quoted_for_a_shell(tmp_path: Path) -> None:
    assert format_command("validate", tmp_path / "my bundle; rm x") == (
        f"flash-export validate '{tmp_path}/my bundle; rm x'"
    )


@pytest.mark.parametrize(
    ("output", "stdout", "stderr"),
    [
        (Output(), "text\ntable\n", "Next: flash-export doctor\n"),
        (Output(stdout_is_taken=True), "", "text\ntable\nNext: flash-export doctor\n"),
        (Output(quiet=True), "", ""),
    ],
)
def test_text_goes_where_no_product_is(
    capsys: pytest.CaptureFixture[str], output: Output, stdout: str, stderr: str
) -> None:
    output.echo("text")
    output.console.print("table")
    output.suggest_next("doctor")
    assert capsys.readouterr() == (stdout, stderr)


@pytest.mark.parametrize(
    ("output", "shown"),
    [(Output(), ["Warning"]), (Output(quiet=True), []), (Output(verbose=True), ["Debug", "Debug", "Warning"])],
)
def test_the_log_is_as_loud_as_wanted(capsys: pytest.CaptureFixture[str], output: Output, shown: list[str]) -> None:
    logger = logging.getLogger("flash_export.validators")
    with output.show_log():
        logger.debug("a detail")
        logger.warning("look at this")
    logger.error("nobody shows the log any more")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == shown
    assert not output.verbose or "torch 2." in lines[0]


def test_verbose_tells_times_and_why_a_backend_is_skipped(bundle: Bundle) -> None:
    arguments = ["validate", str(bundle.path), "--seq-lens", "3", "--batch", "1", "--no-latency", "--threads", "1"]
    result = CliRunner().invoke(main, [*arguments, "-v"])
    assert result.exit_code == 0, result.output
    assert re.search(r"Debug: Validating: .* took \d+\.\d\d s", result.stderr)
    assert "Debug: ort-cuda is skipped\nTraceback (most recent call last):\n" in result.stderr
    assert "Traceback" not in CliRunner().invoke(main, arguments).stderr


def test_log_file_has_versions_command_and_how_it_ended(bundle: Bundle, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    result = CliRunner().invoke(main, ["inspect", str(bundle.path), "-q", "--log-file", str(log)])
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    first = log.read_text()
    assert re.search(r"^\d{4}-\d\d-\d\d [\d:,]+ DEBUG flash_export: flash-export.*: flash-export .*torch ", first)

    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "none"), "-q", "--log-file", str(log)])
    assert result.exit_code == 2
    assert log.read_text().startswith(first)  # it is added to
    assert "ERROR flash_export: stopped\nTraceback" in log.read_text()
    assert "does not exist; give a bundle folder" in log.read_text()
    assert "Traceback" not in result.stderr


def test_log_file_that_cannot_be_opened_is_one_line(bundle: Bundle, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(bundle.path), "--log-file", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"Error: --log-file {tmp_path} cannot be opened (Is a directory); give another one\n"
