"""The bundle: the folder that an export writes and that every later command reads.

The manifest names every file with its sha256. Opening a bundle checks them all, so that whatever is compared,
compiled or shipped later is what was exported.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flash_export.errors import BundleError
from flash_export.files import check_utf8, hash_file, hash_files, replace_folder
from flash_export.manifest import FORMAT_VERSION, EngineManifest, GraphSpec, Manifest
from flash_export.probes import PROBES_FILE, ProbeMap
from flash_export.quantization_record import QuantizationRecord
from flash_export.structure import find_mismatch

if TYPE_CHECKING:
    from flash_export.models.base import ReferenceModel

CONFIG_FILE = "config.json"
MANIFEST_FILE = "manifest.json"
QUANTIZATION_FILE = "quantization.json"
GRAPH_FILE = "model.onnx"
HELDOUT_TEXT_FILE = "heldout.txt"
HELDOUT_FILE = "heldout.json"
ENGINE_FOLDER = "engines"
REPORT_FOLDER = "reports"


@dataclass(frozen=True)
class Bundle:
    """An exported model on disk whose files were found to be what the manifest says."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read the manifest and check the sha256 of every file it names.

        Raises:
            BundleError: The folder is no bundle, a file is missing, or a file was changed.
            ConfigError: The path is no UTF-8.
        """
        folder = Path(path)
        check_utf8(folder)
        manifest = _read_manifest(folder)
        for name in manifest.files:
            if not (folder / name).is_file():
                raise BundleError(f"{folder / name} is missing, but {MANIFEST_FILE} names it; export the bundle again")
        hashes = hash_files([folder / name for name in manifest.files])
        for (name, expected), actual in zip(manifest.files.items(), hashes, strict=True):
            if actual != expected:
                raise BundleError(
                    f"{folder / name} was changed after the export: sha256 {actual[:12]}..., the manifest says "
                    f"{expected[:12]}...; export the bundle again"
                )
        return cls(folder, manifest)

    def get_graph(self, name: str = "forward") -> GraphSpec:
        """Return the contract of a graph.

        Raises:
            BundleError: The bundle has no such graph.
        """
        try:
            return self.manifest.graphs[name]
        except KeyError:
            known = ", ".join(self.manifest.graphs)
            raise BundleError(f"{self.path} has no graph {name!r}; it has {known}") from None

    def get_graph_path(self, name: str = "forward") -> Path:
        """Return the ONNX file of a graph."""
        return self.path / self.get_graph(name).file

    def read_config(self) -> dict[str, Any]:
        """Return the model's config as ``config.json`` has it, ``model_type`` first."""
        return _read_json(self.path / CONFIG_FILE)

    def read_probes(self) -> ProbeMap:
        """Return where the forward graph computes which quantity of the model.

        Raises:
            BundleError: The bundle was exported by a version that did not write this down, or the file is damaged.
        """
        path = self.path / PROBES_FILE
        if PROBES_FILE not in self.manifest.files:
            raise BundleError(
                f"{self.path} has no {PROBES_FILE}, which says where the graph can be read, because an older version "
                "exported it; export it again"
            )
        values = _read_json(path)
        if mismatch := find_mismatch(values, ProbeMap):
            raise BundleError(f"{path} is damaged: {mismatch}; export the bundle again")
        return ProbeMap.from_dict(values)

    def read_quantization(self) -> QuantizationRecord | None:
        """Return how the bundle was quantized; None if it was not.

        Raises:
            BundleError: What is written down of it is damaged.
        """
        if QUANTIZATION_FILE not in self.manifest.files:
            return None
        values = _read_json(self.path / QUANTIZATION_FILE)
        if mismatch := find_mismatch(values, QuantizationRecord):
            raise BundleError(f"{self.path / QUANTIZATION_FILE} is damaged: {mismatch}; quantize the bundle again")
        return QuantizationRecord.from_dict(values)

    def load_model(self) -> ReferenceModel:
        """Build the reference model, in evaluation mode and fp32, with the bundled weights."""
        from flash_export.models.checkpoint import load_pretrained

        return load_pretrained(self.path)

    def list_engines(self) -> list[EngineManifest]:
        """Return the manifests of the engines built from this bundle, by name.

        Raises:
            BundleError: An engine manifest cannot be read.
        """
        return [_read_engine_manifest(path) for path in sorted((self.path / ENGINE_FOLDER).glob("*.json"))]

    def get_engine_path(self, engine: EngineManifest) -> Path:
        """Return the file of an engine after checking that it belongs to this bundle and was not changed.

        Raises:
            BundleError: The file is missing or changed, or the engine was built from another graph.
        """
        path = self.path / ENGINE_FOLDER / f"{engine.name}.engine"
        if not path.is_file():
            raise BundleError(f"{path} is missing, but {engine.name}.json names it; build the engine again")
        if hash_file(path) != engine.engine_sha256:
            raise BundleError(f"{path} was changed after the build; never run it, build the engine again")
        if self.manifest.files[self.get_graph(engine.graph).file] != engine.graph_sha256:
            raise BundleError(f"{path} was built from another graph than this bundle's; build the engine again")
        return path

    def write_engine(self, engine: EngineManifest, plan: bytes) -> None:
        """Store an engine and its manifest in one step, replacing an engine of that name.

        The folder of engines is exchanged for one with the new pair in it, the others being hard links: a killed run
        leaves the old pair or the new one.

        Raises:
            BundleError: The folder cannot be written, or the disk is full; the engines are then as they were.
        """
        folder = self.path / ENGINE_FOLDER
        with replace_folder(folder) as staging:
            for path in folder.glob("*") if folder.is_dir() else ():
                if path.stem != engine.name:
                    os.link(path, staging / path.name)
            (staging / f"{engine.name}.engine").write_bytes(plan)
            (staging / f"{engine.name}.json").write_text(engine.to_json(), encoding="utf-8")


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_FILE
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder; give the folder that 'flash-export onnx' wrote")
    if not path.is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST_FILE}; make one with 'flash-export onnx'")
    values = _read_json(path)
    if values.get("format_version") != FORMAT_VERSION:
        raise BundleError(
            f"{path} has format_version {values.get('format_version')!r}, this version reads {FORMAT_VERSION}; "
            "export the bundle again"
        )
    if mismatch := find_mismatch(values, Manifest):
        raise BundleError(f"{path} is damaged: {mismatch}; export the bundle again")
    manifest = Manifest.from_dict(values)
    if outside := [name for name in manifest.files if Path(name).name != name]:
        raise BundleError(f"{path} is damaged: {outside[0]!r} is not a file of the bundle; export the bundle again")
    if unhashed := [graph.file for graph in manifest.graphs.values() if graph.file not in manifest.files]:
        raise BundleError(f"{path} is damaged: it has no sha256 of {unhashed[0]}; export the bundle again")
    return manifest


def _read_engine_manifest(path: Path) -> EngineManifest:
    values = _read_json(path)
    if mismatch := find_mismatch(values, EngineManifest):
        raise BundleError(f"{path} is damaged: {mismatch}; build the engine again")
    if values["name"] != path.stem:
        raise BundleError(f"{path} describes the engine {values['name']!r}; build the engine again")
    return EngineManifest.from_dict(values)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read as JSON ({error}); make it again") from error
    if not isinstance(values, dict):
        raise BundleError(f"{path} holds {type(values).__name__}, not a JSON object; make it again")
    return values
