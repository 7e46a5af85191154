"""SIGTERM and SIGHUP end a command as Ctrl-C does: what is unfinished is removed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

TERMINATIONS = (signal.SIGTERM, signal.SIGHUP)
# Time for Python to leave the finaliser in which a signal was lost.
_RESEND_S = 0.05


class Terminated(KeyboardInterrupt):
    """This process was asked to end.

    Attributes:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        """Take the signal."""
        super().__init__(number)
        self.number = number


def get_exit_code(interrupt: BaseException) -> int:
    """Return what a shell gives for a process that a signal ended: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + (interrupt.number if isinstance(interrupt, Terminated) else signal.SIGINT)


@contextmanager
def raise_terminations() -> Iterator[None]:
    """Raise :class:`Terminated` at the first of these signals while the block runs; a second one ends at once.

    A signal that is ignored, as by ``nohup``, stays so. Python drops what is raised in a finaliser, which tracing a
    model runs many of; a signal that is lost so is sent again. Python allows signal handlers in the main thread only;
    elsewhere nothing changes.
    """
    numbers = []
    if threading.current_thread() is threading.main_thread():
        numbers = [number for number in TERMINATIONS if signal.getsignal(number) == signal.SIG_DFL]

    def end(number: int, _frame: FrameType | None) -> None:
        for one in numbers:
            signal.signal(one, signal.SIG_DFL)
        raise Terminated(number)

    def send_again(lost: sys.UnraisableHookArgs) -> None:
        if not isinstance(lost.exc_value, Terminated):
            report_lost(lost)
            return
        for one in numbers:
            signal.signal(one, end)
        threading.Timer(_RESEND_S, os.kill, (os.getpid(), lost.exc_value.number)).start()

    report_lost = sys.unraisablehook
    for number in numbers:
        signal.signal(number, end)
    sys.unraisablehook = send_again if numbers else report_lost
    try:
        yield
    finally:
        sys.unraisablehook = report_lost
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
