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
from flash_export.standalone.clients import CLIENTS, GENERATION, find_refused
from flash_export.standalone.context import format_shape, make_context

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
        bundle: The bundle; its graphs are copied.
        output: Folder to create.
        force: Replace such a folder that is there, with what was changed in it.

    Raises:
        BundleError: ``output`` holds something else or cannot be written, or the bundle was replaced meanwhile;
            ``output`` is then as it was.
        ConfigError: The path is no UTF-8.
    """
    target = Path(output)
    check_replaceable(target, MANIFEST_FILE, "standalone folder", "what was changed", force=force)
    refused = find_refused(bundle)
    is_generating = bundle.manifest.interface.vocab_size is not None and GENERATION not in refused
    clients = [client for client in CLIENTS if client.title not in refused]
    context = make_context(bundle, generates=is_generating)
    context |= {"clients": [client.title for client in clients], "left_out": refused}
    with replace_folder(target, overwrite=force) as staging:
        names = {*(graph.file for graph in context["graphs"].values()), *context["data_files"]}
        _copy_graphs(bundle, sorted(names), staging / GRAPH_FOLDER)
        for name in (README_FILE, *(name for client in clients for name in client.files)):
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_text(_render(name, context), encoding="utf-8")
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


def _copy_graphs(bundle: Bundle, names: Sequence[str], folder: Path) -> None:
    """Copy graphs, and the files that their weights are in.

    Raises:
        BundleError: A copy is not what the manifest names.
    """
    folder.mkdir()
    for name in names:
        shutil.copyfile(bundle.path / name, folder / name)
    for name, found in zip(names, hash_files([folder / name for name in names]), strict=True):
        if found != bundle.manifest.files[name]:
            raise BundleError(f"{bundle.path / name} was changed while it was copied; run it again")


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
