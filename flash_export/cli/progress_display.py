"""Showing progress on stderr: a bar on a terminal; elsewhere a line now and then, as in the log of a CI job."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flash_export.progress import ProgressCallback

FIRST_LINE_S = 20.0  # what is done sooner needs no line
LINE_INTERVAL_S = 60.0
MIN_LOGGED_S = 0.01
FIRST_STAGE = "loading"
logger = logging.getLogger(__name__)


@contextlib.contextmanager
def show_progress(title: str, *, quiet: bool) -> Iterator[ProgressCallback]:
    """Show how far the block is; it is given what has to be called before each step.

    Args:
        title: What is being done, such as ``Quantizing``.
        quiet: Show nothing.
    """
    with contextlib.ExitStack() as stack:
        timer = stack.enter_context(_log_stages(title))
        if quiet:
            yield timer
            return
        display = stack.enter_context(_show_bar(title) if sys.stderr.isatty() else _print_lines(title))

        def update(done: int, total: int, label: str) -> None:
            timer(done, total, label)
            display(done, total, label)

        yield update


@contextlib.contextmanager
def _show_bar(title: str) -> Iterator[ProgressCallback]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from flash_export.terminal import open_console

    columns = (TextColumn(title), BarColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=open_console(stderr=True), transient=True) as bar:
        task = bar.add_task(FIRST_STAGE, total=None)

        def update(done: int, total: int, label: str) -> None:
            bar.update(task, completed=done, total=total, description=label)

        yield update


@contextlib.contextmanager
def _print_lines(title: str) -> Iterator[ProgressCallback]:
    """Print what is under way after some seconds, then once a minute, however long a step takes."""
    start, stopped = time.monotonic(), threading.Event()
    stage = FIRST_STAGE

    def update(done: int, total: int, label: str) -> None:
        nonlocal stage
        stage = f"{done / total if total else 1:.0%}, {label}"

    def print_lines() -> None:
        interval = FIRST_LINE_S
        while not stopped.wait(interval):
            with contextlib.suppress(OSError):  # nobody reads stderr any more
                click.echo(f"{title}: {stage}, after {time.monotonic() - start:.0f} s", err=True)
            interval = LINE_INTERVAL_S

    thread = threading.Thread(target=print_lines, daemon=True)
    thread.start()
    try:
        yield update
    finally:
        stopped.set()
        thread.join()


@contextlib.contextmanager
def _log_stages(title: str) -> Iterator[ProgressCallback]:
    """Log how long each stage took."""
    stage, start = FIRST_STAGE, time.perf_counter()

    def log() -> None:
        seconds = time.perf_counter() - start
        if seconds >= MIN_LOGGED_S:
            logger.debug("%s: %s took %.2f s", title, stage, seconds)

    def update(_done: int, _total: int, label: str) -> None:
        nonlocal stage, start
        log()
        stage, start = label, time.perf_counter()

    yield update
    log()
