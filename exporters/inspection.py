"""What ``flash-export inspect`` shows of a bundle, a graph or an engine, as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flash_export.bundle.bundle import ENGINE_FOLDER, MANIFEST_FILE, Bundle, reads_bundles
from flash_export.bundle.manifest import EngineManifest, Manifest  # noqa: TC001 (fields are read as a schema)
from flash_export.bundle.quantization_record import QuantizationRecord  # noqa: TC001
from flash_export.errors import BundleError
from flash_export.exporters.analysis import GraphAnalysis, analyse_graph
from flash_export.strict_json import format_json


@dataclass(frozen=True)
class Inspection:
    """Everything known about a path; parts that do not apply are None or empty.

    Attributes:
        kind: ``bundle``, ``graph`` or ``engine``.
        path: What was inspected.
        manifest: Of a bundle.
        graphs: Counts of each graph, by name; of a lone ONNX file under its file name.
        engines: Engines of a bundle, or the one that was named.
        quantization: How a bundle was quantized; None if it was not.
    """

    kind: str
    path: Path
    manifest: Manifest | None
    graphs: dict[str, GraphAnalysis]
    engines: tuple[EngineManifest, ...]
    quantization: QuantizationRecord | None = None

    def to_json(self) -> str:
        """Return strict JSON."""
        return format_json(self)


@reads_bundles
def inspect_bundle(bundle: Bundle) -> Inspection:
    """Inspect a bundle that is open.

    Raises:
        BundleError: A file was changed since it was written.
    """
    graphs = {name: analyse_graph(bundle.get_graph_path(name)) for name in bundle.manifest.graphs}
    engines, quantization = tuple(bundle.list_engines()), bundle.read_quantization()
    return Inspection("bundle", bundle.path, bundle.manifest, graphs, engines, quantization)


def inspect_path(path: str | Path) -> Inspection:
    """Inspect a bundle folder, an ``.onnx`` file, or an engine (``.engine`` or its ``.json``) of a bundle.

    Raises:
        BundleError: The path is none of them, or was changed since it was written.
    """
    target = Path(path)
    if not target.exists():
        raise BundleError(f"{target} does not exist; give a bundle folder, an .onnx file or an engine")
    if target.is_dir():
        return inspect_bundle(Bundle.open(target))
    if target.suffix == ".onnx":
        return Inspection("graph", target, None, {target.name: analyse_graph(target)}, ())
    folder = target.resolve().parent
    if target.suffix in (".engine", ".json") and folder.name == ENGINE_FOLDER:
        bundle = Bundle.open(folder.parent)
        for engine in bundle.list_engines():
            if engine.name == target.stem:
                bundle.get_engine_path(engine)
                return Inspection("engine", target, None, {}, (engine,))
        raise BundleError(f"{target} has no manifest {target.stem}.json beside it; build the engine again")
    raise BundleError(
        f"{target} is neither a bundle (a folder with {MANIFEST_FILE}), an .onnx file, nor an engine in a bundle's "
        f"{ENGINE_FOLDER} folder"
    )
