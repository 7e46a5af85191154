"""Which engines of a bundle the TensorRT program of a standalone folder runs, and what they let it do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flash_export.bundle.bundle import ENGINE_FOLDER
from flash_export.config import FORWARD, PREFILL, TENSORRT_RTX
from flash_export.generation.generate import DEFAULT_SEGMENT_LEN, round_segment
from flash_export.generation.state_graphs import list_state_graphs
from flash_export.interface import BATCH, PAST, SEQ
from flash_export.runtime.trt_api import get_flavour
from flash_export.standalone.context import FILE_NAME, check_names

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle
    from flash_export.bundle.manifest import EngineManifest
    from flash_export.config import Flavour


@dataclass(frozen=True)
class EngineSet:
    """Engines that one program runs together: one of each graph, all built by the same TensorRT.

    Attributes:
        by_graph: The engines by the names of their graphs.
        flavour: What built them.
        generates: Whether they are those that a text is read and written with.
    """

    by_graph: Mapping[str, EngineManifest]
    flavour: Flavour
    generates: bool

    @property
    def title(self) -> str:
        """What messages call the library that they need."""
        return self.flavour.title

    @property
    def library(self) -> str:
        """Name of that library, as a linker is told it."""
        return "tensorrt_rtx" if self.flavour == TENSORRT_RTX else "nvinfer"

    @property
    def version(self) -> str:
        """Version of that library."""
        return next(iter(self.by_graph.values())).version

    @property
    def targets(self) -> tuple[str, ...]:
        """Compute capabilities that all of them were built for."""
        first, *others = self.by_graph.values()
        return tuple(one for one in first.targets if all(one in other.targets for other in others))

    @property
    def files(self) -> dict[str, str]:
        """Names of their files, by graph."""
        return {graph: f"{engine.name}.engine" for graph, engine in self.by_graph.items()}

    def list_files(self, bundle: Bundle) -> dict[str, tuple[Path, str]]:
        """Return path and sha256 of their files, by where they go in the folder.

        Raises:
            BundleError: A file is missing or changed, or the engine was built from another graph.
        """
        return {
            f"{ENGINE_FOLDER}/{engine.name}.engine": (bundle.get_engine_path(engine), engine.engine_sha256)
            for engine in self.by_graph.values()
        }


def choose_engines(bundle: Bundle, *, generates: bool) -> EngineSet | None:
    """Return the engines that a program can run: those that generate, if there are all of them, else the whole pass.

    Of several engines of a graph it is the last by name, as for ``generate``.

    Args:
        bundle: The bundle.
        generates: Whether the graphs of the bundle go on from prompts.

    Returns:
        The engines; None: there are none, or they were built by several versions or for different GPUs.

    Raises:
        BundleError: The manifest of an engine cannot be read, or names a flavour that is not known.
    """
    built: dict[tuple[str, str], dict[str, EngineManifest]] = {}
    for engine in bundle.list_engines():
        built.setdefault((engine.flavour, engine.version), {})[engine.graph] = engine
    wanted = [(list_state_graphs(bundle), True)] if generates else []
    for names, is_generating in (*wanted, ((FORWARD,), False)):
        for by_graph in built.values():
            if all(name in by_graph for name in names):
                found = {name: by_graph[name] for name in names}
                chosen = EngineSet(found, get_flavour(found[names[0]]), is_generating)
                if chosen.targets:
                    return chosen
    return None


def make_engine_context(bundle: Bundle, engines: EngineSet, context: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the templates of the TensorRT program know otherwise than the others: a profile may be narrower.

    Args:
        bundle: The bundle.
        engines: Those that the program runs.
        context: What the other templates know.

    Raises:
        BundleError: An engine has a name, version or target that no program could hold.
    """
    check_names(bundle, "engine", FILE_NAME, engines.files.values())
    check_names(bundle, "version of an engine", FILE_NAME, [engines.version])
    check_names(bundle, "target of an engine", FILE_NAME, engines.targets)
    bounds = {name: _find_bounds(engine) for name, engine in engines.by_graph.items()}
    batches = [one[BATCH][0] for one in bounds.values() if BATCH in one]
    values: dict[str, Any] = {
        "files": engines.files,
        "generates": engines.generates,
        "grows": context["grows"] and engines.generates,
        "min_batch": max([context["min_batch"], *batches]),
    }
    if engines.generates:
        longest = [one[PAST][1] for one in bounds.values() if PAST in one]
        _, longest_segment = bounds[PREFILL].get(SEQ, (0, context["segment_len"]))
        values["max_len"] = min([context["max_len"], *longest])
        values["segment_len"] = round_segment(DEFAULT_SEGMENT_LEN, context["window"], longest_segment)
    return values


def _find_bounds(engine: EngineManifest) -> dict[str, tuple[int, int]]:
    """Return the smallest and the largest size of each free axis in any profile of an engine."""
    bounds: dict[str, tuple[int, int]] = {}
    for spec in engine.inputs:
        for axis, name in enumerate(spec.shape):
            if isinstance(name, str):
                shapes = [profile[spec.name] for profile in engine.profiles]
                bounds[name] = (min(one.min[axis] for one in shapes), max(one.max[axis] for one in shapes))
    return bounds
