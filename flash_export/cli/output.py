"""Where the words of a command go: text and tables, what to do next, the log, and its result as JSON.

Products, such as generated text and ``--json -``, go to stdout. Text for people goes there too, or to stderr where
stdout is taken. What to do next, progress, warnings and errors always go to stderr.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import shlex
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from flash_export.errors import ConfigError, describe_reason
from flash_export.printable import encode_text, escape_unprintable
from flash_export.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from flash_export.progress import ProgressCallback
    from flash_export.report.document import Document

STDOUT = "-"
logger = logging.getLogger("flash_export")
_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "numpy")


class Result(Protocol):
    """What a command returns."""

    def to_json(self) -> str:
        """Return it as strict JSON."""


@dataclass(frozen=True)
class Output:
    """Where a command's words go.

    Attributes:
        quiet: Whether nothing but products and errors is shown.
        verbose: Whether the log shows versions, times and tracebacks of what was skipped.
        stdout_is_taken: Whether a product goes to stdout, so that text for people has to go to stderr.
        is_step: Whether this is a step of a longer command, which says itself what comes next.
        files: Where reports are written to, by format; None: not in that one.
        log_file: Where the whole log is added to; None: nowhere.
    """

    quiet: bool = False
    verbose: bool = False
    stdout_is_taken: bool = False
    is_step: bool = False
    files: dict[str, str | None] = field(default_factory=dict)
    log_file: str | None = None

    @property
    def console(self) -> Console:
        """What tables are printed on."""
        from flash_export.terminal import open_console

        return open_console(stderr=self.stdout_is_taken, quiet=self.quiet)

    def echo(self, text: str = "") -> None:
        """Show text for people."""
        if not self.quiet:
            click.echo(escape_unprintable(text), err=self.stdout_is_taken)

    def show(self, document: Document) -> None:
        """Print a report, and write it in every form that was asked for; all are made before the first is written.

        Raises:
            BundleError: A file cannot be written.
        """
        from flash_export.report.terminal import print_document

        made = [(target, _render(document, name)) for name, target in self.files.items() if target is not None]
        for target, text in made:
            write_text(target, text)
        print_document(document, self.console)

    def suggest_next(self, *arguments: str | Path) -> None:
        """Show the command of ours that comes next, in a form that a shell takes."""
        self.suggest_program("flash-export", *arguments)

    def suggest_program(self, *arguments: str | Path) -> None:
        """Show the command of another program that comes next."""
        if not self.quiet and not self.is_step:
            click.echo(escape_unprintable(f"Next: {shlex.join(map(str, arguments))}"), err=True)

    def show_progress(self, title: str) -> contextlib.AbstractContextManager[ProgressCallback]:
        """Show on stderr how far a long piece of work is; the block is given what has to be called before each step."""
        from flash_export.cli.progress_display import show_progress

        return show_progress(title, quiet=self.quiet)

    @contextlib.contextmanager
    def show_log(self) -> Iterator[None]:
        """Show the package's log while the block runs: on stderr warnings, and details if wanted; all of it in a file.

        Raises:
            ConfigError: The file cannot be opened.
        """
        shown = _StderrHandler(logging.ERROR if self.quiet else logging.DEBUG if self.verbose else logging.WARNING)
        handlers: list[logging.Handler] = [shown]
        if self.log_file is not None:
            handlers.append(_open_log(self.log_file))
        level = logger.level
        logger.setLevel(min(handler.level for handler in handlers))
        for handler in handlers:
            logger.addHandler(handler)
        try:
            logger.debug("%s: %s", format_command(*sys.argv[1:]), _describe_versions())
            yield
        except Exception:
            if self.log_file is not None:
                handlers[-1].handle(logger.makeRecord(logger.name, logging.ERROR, "", 0, "stopped", (), sys.exc_info()))
            raise
        finally:
            logger.setLevel(level)
            for handler in handlers:
                logger.removeHandler(handler)
                handler.close()


def _open_log(path: str) -> logging.Handler:
    """Return what adds lines with time and level to a file."""
    try:
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"--log-file {path} cannot be opened ({describe_reason(error)}); give another one") from error
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        click.echo(escape_unprintable(f"{record.levelname.capitalize()}: {self.format(record)}"), err=True)


def _describe_versions() -> str:
    versions = [f"flash-export {__version__}", f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{name} {metadata.version(name)}")
    return ", ".join(versions)


def _render(document: Document, name: str) -> str:
    """Return a report in the format of an option: ``html``, ``markdown`` or ``junit``."""
    if name == "html":
        from flash_export.report.html import render_html

        return render_html(document)
    if name == "markdown":
        from flash_export.report.markdown import render_markdown

        return render_markdown(document)
    from flash_export.report.junit import render_junit

    return render_junit(document)


def format_command(*arguments: str | Path) -> str:
    """Return a command line of ours as a shell takes it.

    >>> format_command("validate", Path("my bundle"))
    "flash-export validate 'my bundle'"
    """
    return shlex.join(["flash-export", *map(str, arguments)])


def write_text(target: str | Path | None, text: str) -> None:
    """Write to a file, to stdout for ``-``, or nowhere for None.

    Raises:
        BundleError: The file cannot be written.
    """
    from flash_export.files import write_file

    if target == STDOUT:
        click.echo(escape_unprintable(text), nl=False)
    elif target is not None:
        write_file(Path(target), encode_text(text))
