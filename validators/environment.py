"""Where a validation ran: the versions and the hardware that its numbers belong to."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from flash_export.processor import read_cpu_name
from flash_export.version import __version__

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle
    from flash_export.models.base import ReferenceModel

_PACKAGES = ("torch", "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13")


def describe_environment(bundle: Bundle, model: ReferenceModel, threads: int | None) -> dict[str, str | int]:
    """Return the model's facts, versions of packages, hardware, and the time, by name.

    Args:
        bundle: The validated bundle.
        model: Its reference model.
        threads: Threads that were asked for; None: the default of each backend.
    """
    graph = bundle.get_graph()
    facts: dict[str, str | int] = {
        "model_type": model.config.model_type,
        "parameters": model.count_parameters(),
        **{name: int(value) for name, value in model.config.to_dict().items() if name == "chunk_size"},
        **({"assumed": assumed} if (assumed := bundle.manifest.imported.assumptions) else {}),
        "precision": graph.label,
        "opset": graph.opset,
    }
    return facts | describe_machine(threads)


def describe_machine(threads: int | None) -> dict[str, str | int]:
    """Return versions of packages, hardware, and the time, by name.

    Args:
        threads: Threads that were asked for; None: the default of each backend.
    """
    import torch

    facts: dict[str, str | int] = {"flash_export": __version__, "python": platform.python_version()}
    facts |= {name.replace("-", "_"): version for name in _PACKAGES if (version := _find_version(name))}
    facts["platform"] = platform.platform()
    facts["cpu"] = read_cpu_name()
    facts["cpu_cores"] = os.cpu_count() or 1
    facts["threads"] = threads if threads is not None else f"default ({torch.get_num_threads()} in the eager model)"
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    facts["created"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return facts


def _find_version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None
