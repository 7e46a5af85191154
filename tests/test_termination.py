"""Signals that ask a process to end are raised once, and only where they are not ignored."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest

from flash_export.termination import TERMINATIONS, Terminated, get_exit_code, raise_terminations


@pytest.mark.usefixtures("default_hang_up")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signal_is_raised_and_a_second_one_is_not_caught(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    handlers: list[object] = []

    def end() -> None:
        with raise_terminations():
            try:
                os.kill(os.getpid(), number)
            finally:
                handlers.extend(map(signal.getsignal, TERMINATIONS))

    with pytest.raises(Terminated) as caught:
        end()
    assert get_exit_code(caught.value) == code
    assert handlers == [signal.SIG_DFL, signal.SIG_DFL]
    assert signal.getsignal(number) == before


class _Finalised:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)  # the handler runs here, and Python drops what it raises


def test_signal_that_python_drops_in_a_finaliser_comes_again() -> None:
    before = sys.unraisablehook

    def end() -> None:
        with raise_terminations():
            _Finalised()
            for _ in range(1000):
                time.sleep(0.01)

    with pytest.raises(Terminated):
        end()
    assert sys.unraisablehook is before


def test_it_is_treated_as_an_interrupt() -> None:
    assert isinstance(Terminated(signal.SIGTERM), KeyboardInterrupt)
    assert get_exit_code(KeyboardInterrupt()) == 130


def test_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raise_terminations():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_change_nothing() -> None:
    failures: list[BaseException] = []

    def enter() -> None:
        try:
            with raise_terminations():
                assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert failures == []
