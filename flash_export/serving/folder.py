"""One model of a repository, described before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flash_export.bundle.bundle import MANIFEST_FILE
from flash_export.bundle.external_data import list_external_files
from flash_export.bundle.manifest import METADATA_PREFIX
from flash_export.config import WEIGHTS_FILE
from flash_export.errors import BundleError
from flash_export.exporters.self_description import describe_facts
from flash_export.files import hash_file
from flash_export.serving.options import CPU

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle
    from flash_export.bundle.manifest import GraphSpec
    from flash_export.serving.options import TritonOptions


@dataclass(frozen=True)
class ModelFolder:
    """One model of a repository.

    Attributes:
        name: Of the folder, and so of the model.
        form: ``forward``, ``ragged``, ``sequence`` or ``generate``.
        config: Values of ``config.pbtxt``.
        copied: Files of the bundle that are copied into the version's folder, by their path there, with their sha256.
        texts: Files that are written there, by their path.
    """

    name: str
    form: str
    config: Mapping[str, Any]
    copied: Mapping[str, tuple[Path, str]]
    texts: Mapping[str, str] = field(default_factory=dict)


def take_graph(bundle: Bundle, name: str) -> dict[str, tuple[Path, str]]:
    """Return the files of a graph under the names that they have in the bundle, which the graph knows them by."""
    path = bundle.get_graph_path(name)
    return {one: (bundle.path / one, bundle.manifest.files[one]) for one in (path.name, *list_external_files(path))}


def take_bundle(bundle: Bundle, folder: str) -> dict[str, tuple[Path, str]]:
    """Return all files of a bundle but its engines and reports, in a folder of that name."""
    manifest = bundle.path / MANIFEST_FILE
    hashes = {MANIFEST_FILE: hash_file(manifest), **bundle.manifest.files}
    return {f"{folder}/{name}": (bundle.path / name, sha256) for name, sha256 in hashes.items()}


def describe_origin(bundle: Bundle, name: str) -> dict[str, str]:
    """Return what a graph says of itself, as parameters that whoever asks the server for its configuration reads."""
    manifest = bundle.manifest
    facts = describe_facts(
        name,
        bundle.get_graph(name),
        manifest.interface,
        family=bundle.read_config()["model_type"],
        weights_sha256=manifest.files[WEIGHTS_FILE],
    )
    return {f"{METADATA_PREFIX}{key}": value for key, value in facts.items()}


def describe_run(bundle: Bundle, name: str, options: TritonOptions) -> dict[str, str]:
    """Return the parameters of a graph in Triton's onnxruntime backend."""
    threads = {} if options.threads is None else {"intra_op_thread_count": str(options.threads)}
    return {**threads, **describe_origin(bundle, name)}


def check_precision(bundle: Bundle, graph: GraphSpec, options: TritonOptions) -> None:
    """Check that onnxruntime has kernels for a graph.

    Raises:
        BundleError: It has none.
    """
    if graph.arithmetic == "bf16" and options.device == CPU:
        raise BundleError(
            f"{bundle.path} is bf16, and onnxruntime has no bf16 kernels on a CPU; give --device gpu, or export it "
            "again with --precision fp16 or fp32"
        )
