"""TensorRT's own messages: collected for errors, passed on to Python's logging, never printed."""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

LOGGER_NAME = "flash_export.tensorrt"

# TensorRT warns of every int64 input and output, which is what token ids are, and of the part of the state that prefill
# has no use for: where a chunk starts, no earlier key of the quadratic branch is seen.
_HARMLESS = re.compile(r"Make sure (input|output) \S+ has Int64 binding|Input Tensor state\.\S+ is unused")
_SOURCE_POSITION = re.compile(r"\s*\(?In \w+ at /\S+\.(?:cpp|h):\d+\)?:?")

logger = logging.getLogger(LOGGER_NAME)
logger.addHandler(logging.NullHandler())


_collectors: list[list[str]] = []


@contextmanager
def collect_errors() -> Iterator[list[str]]:
    """Yield a list that receives the errors that TensorRT logs while the block runs."""
    errors: list[str] = []
    _collectors.append(errors)
    try:
        yield errors
    finally:
        _collectors[:] = [collector for collector in _collectors if collector is not errors]


@cache
def get_log(trt: Any) -> Any:
    """Return the TensorRT logger of this process: errors go to the collectors, warnings to the Python logger.

    There is one, because TensorRT ignores a second logger for as long as anything made with the first is alive. Its
    class is made here because the base exists only once TensorRT was imported.
    """
    severity = trt.ILogger.Severity

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def log(self, level: Any, message: str) -> None:
            text = clean_message(message)
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                for errors in _collectors:
                    errors.append(text)
            elif level == severity.WARNING and not _HARMLESS.search(text):
                logger.warning("TensorRT: %s", text)

    return Log()


def clean_message(message: str) -> str:
    """Return a message in one line, without the position in TensorRT's sources."""
    return " ".join(_SOURCE_POSITION.sub("", message).split())
