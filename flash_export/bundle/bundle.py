"""The bundle: the folder that an export writes and that every later command reads.

The manifest names every file with its sha256. Opening a bundle checks them all, so that whatever is compared,
compiled or shipped later is what was exported.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from typing_extensions import ParamSpec

from flash_export.bundle.external_data import check_external_data
from flash_export.bundle.manifest import FORMAT_VERSION, OLD_FORMAT_VERSIONS, EngineManifest, GraphSpec, Manifest
from flash_export.bundle.plain_tree import check_plain_tree
from flash_export.bundle.quantization_record import QuantizationRecord
from flash_export.bundle.stamp import Stamp, check_stamp, take_stamp
from flash_export.config import CONFIG_FILE, FORWARD, GRAPHS, READABLE_SCHEMES, WEIGHTS_FILE
from flash_export.errors import BundleError
from flash_export.files import check_utf8, hash_file, hash_files, link_folder, replace_folder
from flash_export.locks import lock_folder
from flash_export.probes import PROBES_FILE, ProbeMap
from flash_export.reading import build_record, read_json_object, read_record
from flash_export.suggest import list_known
from flash_export.temporary import remove_leftovers
from flash_export.typed_json import show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flash_export.models.base import ReferenceModel

P = ParamSpec("P")
T = TypeVar("T")

MANIFEST_FILE = "manifest.json"
QUANTIZATION_FILE = "quantization.json"
GRAPH_FILE = "model.onnx"
HELDOUT_FILES = ("heldout.txt", "heldout.npy", "heldout.npz")  # one of them, as SETTINGS_FILE says
SETTINGS_FILE = "heldout.json"
ENGINE_FOLDER = "engines"
REPORT_FOLDER = "reports"


def name_probes_file(graph: str) -> str:
    """Return the name of the file that says where a graph can be read."""
    return PROBES_FILE if graph == FORWARD else f"probes.{graph}.json"


# What is read of a bundle besides its graphs; one that the manifest does not name was added later.
_KNOWN_FILES = (
    CONFIG_FILE,
    WEIGHTS_FILE,
    *(name_probes_file(graph) for graph in GRAPHS),
    QUANTIZATION_FILE,
    *HELDOUT_FILES,
    SETTINGS_FILE,
)
_EXPORT_AGAIN, _BUILD_AGAIN, _QUANTIZE_AGAIN = "export the bundle again", "build the engine again", "quantize it again"


@dataclass(frozen=True)
class _ConfigFields:
    """What is asked of ``config.json`` where PyTorch, and with it the config classes, is not loaded."""

    model_type: str


@dataclass(frozen=True)
class Bundle:
    """An exported model on disk whose files were found to be what the manifest says."""

    path: Path
    manifest: Manifest
    stamp: Stamp | None = field(default=None, compare=False, repr=False)  # None: made without a look at the files

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read the manifest and check the sha256 of every file it names.

        What killed processes left in the bundle, beside it or among the system's temporary files is removed first.

        Raises:
            BundleError: The folder is no bundle, a file is missing or was changed, something in the folder is no plain
                file or folder, or a graph takes its weights from elsewhere.
            ConfigError: The path is no UTF-8.
        """
        folder = Path(path)
        check_utf8(folder)
        if folder.is_dir():
            check_plain_tree(folder)
            remove_leftovers(folder, folder / ENGINE_FOLDER, folder / REPORT_FOLDER, folder.resolve().parent, None)
        before = take_stamp(folder, MANIFEST_FILE)
        try:
            bundle = cls._read(folder)
        except BundleError as error:
            check_stamp(folder, before, error)
            raise
        check_stamp(folder, before)
        return replace(bundle, stamp=take_stamp(folder, MANIFEST_FILE, bundle.manifest.files))

    @classmethod
    def _read(cls, folder: Path) -> Bundle:
        manifest = _read_manifest(folder)
        for name in manifest.files:
            if not (folder / name).is_file():
                raise BundleError(f"{folder / name} is missing, but {MANIFEST_FILE} names it; export the bundle again")
        for name in _KNOWN_FILES:
            if name not in manifest.files and (folder / name).exists():
                raise BundleError(
                    f"{folder / name} is not of this export: {MANIFEST_FILE} does not name it; remove it, or "
                    f"{_EXPORT_AGAIN}"
                )
        hashes = hash_files([folder / name for name in manifest.files])
        for (name, expected), actual in zip(manifest.files.items(), hashes, strict=True):
            if actual != expected:
                raise BundleError(
                    f"{folder / name} was changed after the export: sha256 {actual[:12]}..., the manifest says "
                    f"{expected[:12]}...; export the bundle again"
                )
        for graph in manifest.graphs.values():
            check_external_data(folder / graph.file, manifest.files)
        return cls(folder, manifest)

    def check_unchanged(self, cause: Exception | None = None) -> None:
        """Look whether the files are still those that were opened, without reading more of them than the manifest.

        Args:
            cause: What went wrong with them, if anything did.

        Raises:
            BundleError: They were replaced.
        """
        if self.stamp is not None:
            check_stamp(self.path, self.stamp, cause)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Let what the block finds in the bundle, errors too, count only if it is still the one that was opened.

        Raises:
            BundleError: It was replaced.
        """
        try:
            yield
        except Exception as error:
            self.check_unchanged(error)
            raise
        self.check_unchanged()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from changing the bundle while the block does.

        Raises:
            BundleError: It was replaced, or another process did not let go of it.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(lock_folder(self.path))
            except OSError as error:
                self.check_unchanged(error)
                raise
            self.check_unchanged()
            check_plain_tree(self.path)
            yield

    def get_graph(self, name: str = "forward") -> GraphSpec:
        """Return the contract of a graph.

        Raises:
            BundleError: The bundle has no such graph.
        """
        try:
            return self.manifest.graphs[name]
        except KeyError:
            known = list_known(name, self.manifest.graphs)
            raise BundleError(f"{self.path} has no graph {name!r}; it has {known}") from None

    def get_graph_path(self, name: str = "forward") -> Path:
        """Return the ONNX file of a graph."""
        return self.path / self.get_graph(name).file

    def read_config(self) -> dict[str, Any]:
        """Return the model's config as ``config.json`` has it, ``model_type`` first.

        Raises:
            BundleError: It cannot be read, or has values that no model has.
        """
        path = self.path / CONFIG_FILE
        values = read_json_object(path, BundleError, _EXPORT_AGAIN)
        known = {field.name for field in fields(_ConfigFields)}
        asked = {name: value for name, value in values.items() if name in known}
        build_record(path, asked, _ConfigFields, BundleError, _EXPORT_AGAIN)
        return values

    def read_probes(self, graph: str = FORWARD) -> ProbeMap:
        """Return where a graph computes which quantity of the model.

        Args:
            graph: Name of a graph that the bundle has.

        Raises:
            BundleError: The bundle was exported by a version that did not write this down, or the file is damaged.
        """
        name = name_probes_file(graph)
        path = self.path / name
        if name not in self.manifest.files:
            raise BundleError(
                f"{self.path} has no {name}, which says where the graph can be read: this family has none for {graph}, "
                "or an older version exported it; export it again"
            )
        return read_record(path, ProbeMap, BundleError, _EXPORT_AGAIN)

    def read_quantization(self) -> QuantizationRecord | None:
        """Return how the bundle was quantized; None if it was not.

        Raises:
            BundleError: What is written down of it is damaged.
        """
        if QUANTIZATION_FILE not in self.manifest.files:
            return None
        path = self.path / QUANTIZATION_FILE
        record = read_record(path, QuantizationRecord, BundleError, _QUANTIZE_AGAIN)
        for name, graph in self.manifest.graphs.items():
            if graph.precision != record.scheme:
                raise BundleError(
                    f"{path} says {record.scheme}, {MANIFEST_FILE} says {graph.precision} of the graph {show(name)}; "
                    f"{_QUANTIZE_AGAIN}"
                )
        return record

    def load_model(self) -> ReferenceModel:
        """Build the reference model, in evaluation mode and fp32, with the bundled weights.

        Raises:
            BundleError: The manifest describes another model.
            FlashExportError: Config or weights are damaged.
        """
        from flash_export.models.checkpoint import load_pretrained

        model = load_pretrained(self.path)
        if model.config.interface != self.manifest.interface:
            raise BundleError(
                f"{self.path / MANIFEST_FILE} has the interface of another model than {CONFIG_FILE}; {_EXPORT_AGAIN}"
            )
        return model

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

    def check_engine_name(self, name: str) -> None:
        """Look whether an engine can be stored under a name.

        Raises:
            BundleError: There is one of that name.
        """
        if (self.path / ENGINE_FOLDER / f"{name}.json").exists():
            raise BundleError(
                f"{self.path} already has an engine {name!r}; replace it with --force, or choose another --name"
            )

    def write_engine(self, engine: EngineManifest, content: bytes, *, overwrite: bool = True) -> None:
        """Store an engine and its manifest in one step.

        The folder of engines is exchanged for one with the new pair in it, the others being hard links: a killed run
        leaves the old pair or the new one.

        Args:
            engine: The manifest.
            content: The engine.
            overwrite: Whether an engine of that name is replaced.

        Raises:
            BundleError: The folder cannot be written, the disk is full, there is an engine of that name, or the bundle
                was replaced; the engines are then as they were.
        """
        folder, files = self.path / ENGINE_FOLDER, (f"{engine.name}.engine", f"{engine.name}.json")
        with self.lock():
            if not overwrite:
                self.check_engine_name(engine.name)
            with replace_folder(folder) as staging:
                link_folder(folder, staging, files)
                (staging / files[0]).write_bytes(content)
                (staging / files[1]).write_text(engine.to_json(), encoding="utf-8")


def reads_bundles(function: Callable[P, T]) -> Callable[P, T]:
    """Wrap a function so that what it says of bundles counts only if none was replaced while it ran.

    Its bundles are its arguments of this type, alone or in a list or tuple.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with ExitStack() as stack:
            for value in (*args, *kwargs.values()):
                for one in value if isinstance(value, list | tuple) else (value,):
                    if isinstance(one, Bundle):
                        stack.enter_context(one.hold())
            return function(*args, **kwargs)

    return run


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_FILE
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder; give the folder that 'flash-export onnx' wrote")
    if not path.exists():
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST_FILE}; make one with 'flash-export onnx'")
    values = read_json_object(path, BundleError, _EXPORT_AGAIN)
    if values.get("format_version") in OLD_FORMAT_VERSIONS:
        from flash_export.bundle.origin import describe_old_format

        raise BundleError(describe_old_format(folder, values))
    if values.get("format_version") != FORMAT_VERSION:
        raise BundleError(
            f"{path} has format_version {show(values.get('format_version'))}, this version reads {FORMAT_VERSION}; "
            f"{_EXPORT_AGAIN}"
        )
    manifest = build_record(path, values, Manifest, BundleError, _EXPORT_AGAIN)
    is_quantized = QUANTIZATION_FILE in manifest.files
    for name, graph in manifest.graphs.items():
        if (graph.precision in READABLE_SCHEMES) != is_quantized:
            has = "has" if is_quantized else "has no"
            raise BundleError(
                f"{path} is damaged: the graph {show(name)} is {graph.precision}, but the bundle {has} "
                f"{QUANTIZATION_FILE}; {_EXPORT_AGAIN}"
            )
    return manifest


def _read_engine_manifest(path: Path) -> EngineManifest:
    engine = read_record(path, EngineManifest, BundleError, _BUILD_AGAIN)
    if engine.name != path.stem:
        raise BundleError(f"{path} describes the engine {show(engine.name)}; {_BUILD_AGAIN}")
    return engine
