"""What the processor is, and which instructions it has for few bits."""

from __future__ import annotations

import itertools
import platform
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
# What Linux calls them, and what users do.
BF16_FLAGS = {"avx512_bf16": "AVX512_BF16", "amx_bf16": "AMX"}
INT8_FLAGS = {"avx512_vnni": "AVX512_VNNI", "avx_vnni": "AVX_VNNI", "amx_int8": "AMX"}


def read_cpu_name() -> str:
    """Return the name of the processor, or of its kind where the system does not tell."""
    return _read_cpu_info().get("model name") or platform.processor() or platform.machine()


def list_instructions(flags: dict[str, str]) -> list[str] | None:
    """Return which of these instruction sets the processor has; None where the system does not tell.

    Args:
        flags: What Linux calls them, and what users do.
    """
    found = _read_cpu_info().get("flags")
    return None if found is None else [title for flag, title in flags.items() if flag in found.split()]


def _read_cpu_info() -> dict[str, str]:
    """Return the facts of the first core, by name; none where the system is not Linux."""
    try:
        with _CPU_INFO.open(encoding="utf-8") as stream:
            lines = list(itertools.takewhile(str.strip, stream))
    except (OSError, UnicodeDecodeError):
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}
