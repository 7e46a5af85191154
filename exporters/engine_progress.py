"""Progress of an engine build, and its cancellation.

TensorRT reports phases, which nest, and steps within them. An exception must not travel through its C++ code, so
whatever the callback raises is kept, the build is cancelled, and the exception is raised when TensorRT has returned.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flash_export.termination import TERMINATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from flash_export.progress import ProgressCallback


@dataclass
class BuildWatch:
    """Passes progress on and remembers why a build has to stop.

    What counts is the outermost phase; the innermost one that is under way is what comes next.
    """

    progress: ProgressCallback | None = None
    error: BaseException | None = None
    _phases: dict[str, tuple[int, int]] = field(default_factory=dict)  # under way, outermost first: steps done, in all

    def start_phase(self, phase: str, num_steps: int) -> None:
        """Report that a phase begins."""
        self._phases[phase] = (0, num_steps)
        self._send()

    def complete_step(self, phase: str, step: int) -> bool:
        """Report that step number ``step``, counted from 0, is done; return whether to go on."""
        self._phases[phase] = (step + 1, self._phases[phase][1])
        self._send()
        return self.error is None

    def finish_phase(self, phase: str) -> None:
        """Report that a phase is over."""
        num_steps = self._phases[phase][1]
        self._phases[phase] = (num_steps, num_steps)
        self._send()
        del self._phases[phase]

    def _send(self) -> None:
        if self.progress is None or self.error is not None:
            return
        phases = list(self._phases.items())
        (_, (done, total)), (label, (inner_done, inner_total)) = phases[0], phases[-1]
        if len(phases) > 1 and inner_total > 1:
            label += f", {inner_done} of {inner_total}"
        try:
            self.progress(done, total, label)
        except BaseException as error:
            self.error = error

    @contextmanager
    def catch_interrupt(self) -> Iterator[None]:
        """Turn Ctrl-C, and other signals whose handler raises, into a cancelled build.

        Python allows signal handlers in the main thread only; elsewhere signals are not ours to handle.
        """
        is_main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, *TERMINATIONS) if is_main else ()
        handlers = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}

        def remember(number: int, frame: FrameType | None) -> None:
            try:
                handlers[signal.Signals(number)](number, frame)
            except BaseException as error:
                self.error = error

        for number in handlers:
            signal.signal(number, remember)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def raise_error(self) -> None:
        """Raise whatever stopped the build."""
        if self.error is not None:
            raise self.error


def create_monitor(trt: Any, watch: BuildWatch) -> Any:
    """Return a TensorRT progress monitor that drives a watch.

    The class is made here because its base exists only once TensorRT was imported.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            watch.start_phase(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return watch.complete_step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            watch.finish_phase(phase_name)

    return Monitor()
