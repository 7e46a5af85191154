"""The process of one task: reads the request on stdin, writes a JSON object a line, the last one with what it found."""

from __future__ import annotations

import json
import sys
import time
from contextlib import redirect_stdout
from typing import Any, TextIO

from flash_export.study.request import Request
from flash_export.typed_json import build

MODULE = "flash_export.study.worker"
_PROGRESS_EVERY_S = 1.0


class _Reporter:
    """Writes the share that is done, once a second at most."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.shown = stream, 0.0

    def __call__(self, share: float) -> None:
        if time.monotonic() - self.shown >= _PROGRESS_EVERY_S:
            self.shown = time.monotonic()
            self.write({"progress": share})

    def write(self, values: dict[str, Any]) -> None:
        self.stream.write(json.dumps(values) + "\n")
        self.stream.flush()


def main() -> None:
    """Answer the request on stdin."""
    request = build(json.loads(sys.stdin.readline()), Request)
    reporter = _Reporter(sys.stdout)
    with redirect_stdout(sys.stderr):  # whatever a library prints is none of it
        reporter.write(request.run(reporter))


if __name__ == "__main__":
    main()
