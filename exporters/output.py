"""What every bundle that is written has to be: in a folder of its own, with graphs that keep their promises."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import TYPE_CHECKING

from flash_export.bundle.bundle import MANIFEST_FILE
from flash_export.bundle.output_folder import check_replaceable
from flash_export.exporters.promises import check_promises

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from flash_export.bundle.manifest import GraphSpec
    from flash_export.exporters.serialization import SplitModels

VERSIONED_PACKAGES = ("flash-export", "torch", "onnx", "onnxscript", "onnx-ir", "numpy", "safetensors")


def check_output(target: Path, *, force: bool) -> None:
    """Refuse to write where something else is.

    Raises:
        BundleError: ``target`` is a file, another folder, or a bundle and ``force`` is not set.
    """
    check_replaceable(target, MANIFEST_FILE, "bundle", "its engines and reports", force=force)


def check_graphs(models: SplitModels, graphs: Mapping[str, GraphSpec]) -> None:
    """Check that graphs keep their promises, and make them ready to be written.

    Raises:
        GraphError: One does not.
    """
    for graph in graphs.values():
        skeleton = models.skeletons[graph.file]
        check_promises(skeleton, graph.inputs, graph.outputs)
        # Where onnxruntime knows that two blocks have values of the same shape, it keeps one buffer for both all
        # the time: twice the memory of letting go of it in between.
        del skeleton.graph.value_info[:]


def read_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that make a bundle."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in VERSIONED_PACKAGES}}
