"""TensorRT's own messages: collected for errors, passed on to Python's logging, never printed."""

from __future__ import annotations

import logging
import re
from typing import Any

LOGGER_NAME = "flash_export.tensorrt"

# TensorRT warns of every int64 input and output, which is what token ids are.
_HARMLESS = re.compile(r"Make sure (input|output) \S+ has Int64 binding")
_SOURCE_POSITION = re.compile(r"\s*\(?In \w+ at /\S+\.(?:cpp|h):\d+\)?:?")

logger = logging.getLogger(LOGGER_NAME)
logger.addHandler(logging.NullHandler())


def create_log(trt: Any, errors: list[str]) -> Any:
    """Return a TensorRT logger that appends errors to ``errors`` and hands warnings to the Python logger.

    The class is made here because its base exists only once TensorRT was imported.
    """
    severity = trt.ILogger.Severity

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def log(self, level: Any, message: str) -> None:
            text = clean_message(message)
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                errors.append(text)
                logger.debug("%s", text)
            elif level == severity.WARNING and not _HARMLESS.search(text):
                logger.warning("%s", text)

    return Log()


def clean_message(message: str) -> str:
    """Return a message in one line, without the position in TensorRT's sources."""
    return " ".join(_SOURCE_POSITION.sub("", message).split())
