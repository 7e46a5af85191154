"""Telling how far a long piece of work is: one callback for all of them."""

from __future__ import annotations

from collections.abc import Callable

# Called before each step: work done, work in all, and what comes next. The unit is the caller's own: steps, tokens.
ProgressCallback = Callable[[int, int, str], None]


class Steps:
    """Counts steps; ``total`` may be found out, and exceeded, on the way."""

    def __init__(self, progress: ProgressCallback | None, total: int = 1) -> None:
        """Begin with nothing done."""
        self.total = total
        self._progress, self._done = progress, 0

    def begin(self, label: str) -> None:
        """Name the next step."""
        if self._progress:
            self._progress(self._done, max(self.total, self._done + 1), label)
        self._done += 1
