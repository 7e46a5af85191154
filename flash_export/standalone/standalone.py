"""Writing what a service needs that may depend neither on PyTorch nor on this package.

The folder holds copies of the graphs, a README with their inputs and outputs, and programs that run them on a plain
runtime. All of them are made for one bundle: its names, shapes, family and precision.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from flash_export.bundle.bundle import reads_bundles
from flash_export.bundle.output_folder import check_replaceable
from flash_export.errors import BundleError
from flash_export.files import hash_files, replace_folder
from flash_export.standalone.clients import CLIENTS, TENSORRT, can_generate, find_refused
from flash_export.standalone.context import format_shape, make_context
from flash_export.standalone.engines import choose_engines, make_engine_context

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flash_export.bundle.bundle import Bundle

MANIFEST_FILE, README_FILE, GRAPH_FOLDER = "standalone.json", "README.md", "graphs"


@dataclass(frozen=True)
class Standalone:
    """A folder that runs a model by itself.

    Attributes:
        path: The folder.
        source: What the bundle was exported from.
        family: Family of the model.
        precision: What the graphs compute in, or the scheme that they are quantized by.
        clients: Languages that it has a program in.
        left_out: Why it has no more of them, or no generation, by what is left out.
        files: sha256 of each file in it, by path.
        size_bytes: Size of all files.
    """

    path: str
    source: str
    family: str
    precision: str
    clients: tuple[str, ...]
    left_out: dict[str, str]
    files: dict[str, str]
    size_bytes: int

    def to_json(self) -> str:
        """Return it as strict JSON."""
        return _dump(dataclasses.asdict(self))

    def to_manifest(self) -> str:
        """Return the text of ``standalone.json``, which is the same wherever the folder is."""
        return _dump({name: value for name, value in dataclasses.asdict(self).items() if name != "path"})


@reads_bundles
def write_standalone(bundle: Bundle, output: str | Path, *, force: bool = False) -> Standalone:
    """Write a folder that runs a model without PyTorch and without this package.

    Args:
        bundle: The bundle; its graphs are copied, and the engines that a program runs.
        output: Folder to create.
        force: Replace such a folder that is there, with what was changed in it.

    Raises:
        BundleError: ``output`` holds something else or cannot be written, an engine is damaged, or the bundle was
            replaced meanwhile; ``output`` is then as it was.
        ConfigError: The path is no UTF-8.
    """
    target = Path(output)
    check_replaceable(target, MANIFEST_FILE, "standalone folder", "what was changed", force=force)
    refused, generates = find_refused(bundle), can_generate(bundle)
    clients = [client for client in CLIENTS if client.title not in refused]
    engines = choose_engines(bundle, generates=generates)
    context = make_context(bundle, generates=generates)
    context |= {"clients": [client.title for client in clients], "left_out": refused, "engines": engines}
    engine_context = make_engine_context(bundle, engines, context) if engines else {}
    graph_files = {*(graph.file for graph in context["graphs"].values()), *context["data_files"]}
    sources = {f"{GRAPH_FOLDER}/{name}": (bundle.path / name, bundle.manifest.files[name]) for name in graph_files}
    sources |= engines.list_files(bundle) if engines else {}
    with replace_folder(target, overwrite=force) as staging:
        _copy_files(sources, staging)
        _write(README_FILE, context, staging)
        for client in clients:
            known = context | engine_context if client == TENSORRT else context
            for name in client.files:
                _write(name, known, staging)
        files = _hash_folder(staging)
        made = Standalone(
            path=str(target),
            source=context["source"],
            family=context["family"],
            precision=bundle.get_graph().label,
            clients=tuple(client.title for client in clients),
            left_out=refused,
            files=files,
            size_bytes=sum((staging / name).stat().st_size for name in files),
        )
        (staging / MANIFEST_FILE).write_text(made.to_manifest(), encoding="utf-8")
    return made


def _copy_files(sources: Mapping[str, tuple[Path, str]], folder: Path) -> None:
    """Copy graphs, the files that their weights are in, and engines.

    Args:
        sources: Path and sha256 of each file, by where it goes in the folder.
        folder: The folder.

    Raises:
        BundleError: A copy has another sha256.
    """
    for name, (path, _) in sources.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name)
    copied = hash_files([folder / name for name in sources])
    for (path, expected), found in zip(sources.values(), copied, strict=True):
        if found != expected:
            raise BundleError(f"{path} was changed while it was copied; run it again")


def _write(name: str, context: Mapping[str, Any], folder: Path) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(_render(name, context), encoding="utf-8")


def _dump(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"


def _hash_folder(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    return dict(zip(names, hash_files([folder / name for name in names]), strict=True))


def _render(name: str, context: Mapping[str, Any]) -> str:
    return _load_templates().get_template(f"{name}.jinja").render(context)


@functools.cache
def _load_templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read_template),
        autoescape=False,  # of what is not ours, nothing is written but names that were checked
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["shape"] = format_shape
    return environment


def _read_template(name: str) -> str:
    return resources.files("flash_export.standalone").joinpath(f"templates/{name}").read_text(encoding="utf-8")
