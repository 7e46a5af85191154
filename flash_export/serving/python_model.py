"""Models that run in Triton's Python backend: how they are described, and what they read when they start.

The server's Python needs flash-export and what it runs the graphs with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flash_export.bundle.bundle import Bundle
from flash_export.serving.folder import ModelFolder, describe_origin, take_bundle
from flash_export.serving.model_config import describe_instances, describe_parameters
from flash_export.serving.options import CPU
from flash_export.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flash_export.serving.options import TritonOptions

BUNDLE_FOLDER = "bundle"
MODEL_FILE = "model.py"
BACKEND, THREADS = "backend", "threads"
_MODEL = '''"""Answers with the bundle beside this file; written by flash-export {version}, which must be installed."""

from flash_export.serving.{module} import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def describe_python_model(
    bundle: Bundle,
    graph: str,
    config: Mapping[str, Any],
    options: TritonOptions,
    *,
    form: str,
    module: str,
    settings: Mapping[str, object],
) -> ModelFolder:
    """Describe a model of the Python backend that opens the whole bundle.

    Args:
        bundle: The bundle.
        graph: The graph whose description the server gives.
        config: Name, tensors and batching.
        options: Where it runs.
        form: Of the model.
        module: Of this package, with its ``TritonPythonModel``.
        settings: What that reads when it starts.
    """
    settings = {BACKEND: "ort-cpu" if options.device == CPU else "ort-cuda", THREADS: options.threads or "", **settings}
    return ModelFolder(
        str(config["name"]),
        form,
        {
            **config,
            "backend": "python",
            "instance_group": describe_instances(options),
            "parameters": describe_parameters({**settings, **describe_origin(bundle, graph)}),
        },
        take_bundle(bundle, BUNDLE_FOLDER),
        {MODEL_FILE: _MODEL.format(version=__version__, module=module)},
    )


def read_settings(arguments: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters of ``config.pbtxt``, from what Triton gives to ``initialize``."""
    parameters = json.loads(arguments["model_config"])["parameters"]
    return {name: value["string_value"] for name, value in parameters.items()}


def open_bundle(arguments: Mapping[str, str]) -> Bundle:
    """Open the bundle in the folder of the version that Triton starts.

    Raises:
        BundleError: A file is missing or was changed.
    """
    return Bundle.open(Path(arguments["model_repository"]) / arguments["model_version"] / BUNDLE_FOLDER)


def read_threads(settings: Mapping[str, str]) -> int | None:
    """Return the number of threads; None: what the backend chooses."""
    return int(settings[THREADS]) if settings[THREADS] else None
