"""What the templates know of a bundle: its interface, its graphs, and what follows from them for whoever runs them."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from flash_export.bundle.external_data import list_external_files
from flash_export.bundle.manifest import NEW_STATE_PREFIX, STATE_PREFIX
from flash_export.config import DECODE, EXTEND, FORWARD, WEIGHTS_FILE
from flash_export.errors import BundleError
from flash_export.exporters.self_description import describe_facts, describe_tensor
from flash_export.generation.generate import DEFAULT_SEGMENT_LEN, round_segment
from flash_export.generation.prompt_records import BYTE_VOCAB_SIZE
from flash_export.generation.state import find_growing
from flash_export.generation.state_graphs import list_state_graphs
from flash_export.interface import BATCH, SEQ
from flash_export.report.markdown import escape
from flash_export.typed_json import show
from flash_export.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from flash_export.bundle.bundle import Bundle
    from flash_export.bundle.manifest import GraphSpec
    from flash_export.interface import Interface, TensorSpec

# What a program is written with is of a bundle, which may come from anywhere.
FILE_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
_IDENTIFIER = re.compile(r"[a-zA-Z]\w*", re.ASCII)
_STATE_NAME = re.compile(r"[a-zA-Z][\w.]*", re.ASCII)
_LAYER = re.compile(rf"({re.escape(STATE_PREFIX)})(\d+)(\..+)")


@dataclass(frozen=True)
class TensorRow:
    """A row of the README's tables: a tensor, or the same one of every layer.

    Attributes:
        name: Name in the graph; N stands for the number of a layer.
        dtype: Numpy's name of it.
        shape: Such as ``(batch, seq, 256)``.
        text: What it holds.
    """

    name: str
    dtype: str
    shape: str
    text: str


@dataclass(frozen=True)
class GraphSection:
    """What the README says of a graph.

    Attributes:
        name: ``forward``, ``prefill``, ``extend`` or ``decode``.
        file: Its file.
        facts: What the graph says of itself, by key.
        inputs: What it takes.
        outputs: What it returns, without the state after a run.
    """

    name: str
    file: str
    facts: dict[str, str]
    inputs: tuple[TensorRow, ...]
    outputs: tuple[TensorRow, ...]


def make_context(bundle: Bundle, *, generates: bool) -> dict[str, Any]:
    """Return the values of the templates by name.

    Args:
        bundle: The bundle.
        generates: Whether the clients go on from prompts.

    Raises:
        BundleError: A name in it is none that a program could hold.
    """
    manifest, interface, forward = bundle.manifest, bundle.manifest.interface, bundle.get_graph()
    names = [FORWARD, *(list_state_graphs(bundle) if generates else ())]
    graphs = {name: manifest.graphs[name] for name in names}
    family = bundle.read_config()["model_type"]
    data_files = list_data_files(bundle, graphs)
    specs = [spec for graph in graphs.values() for spec in (*graph.inputs, *graph.outputs)]
    check_names(bundle, "file", FILE_NAME, [*(graph.file for graph in graphs.values()), *data_files])
    check_names(bundle, "family", _IDENTIFIER, [family])
    check_names(bundle, "unit", _IDENTIFIER, [interface.unit])
    check_names(bundle, "tensor", _IDENTIFIER, [spec.name for spec in (*forward.inputs, *forward.outputs)])
    check_names(bundle, "tensor", _STATE_NAME, [spec.name for spec in specs])
    check_names(bundle, "axis", _IDENTIFIER, [size for spec in specs for size in spec.shape if isinstance(size, str)])
    context = {
        "version": __version__,
        "source": manifest.checkpoint["source"],
        "shown_source": escape(manifest.checkpoint["source"]),
        "family": family,
        "interface": interface,
        "forward": forward,
        "graphs": graphs,
        "files": {name: graph.file for name, graph in graphs.items() if name != FORWARD or not generates},
        "sections": tuple(_describe_graphs(bundle, graphs)),
        "vocab_size": interface.vocab_size,
        "is_bytes": interface.vocab_size == BYTE_VOCAB_SIZE,
        "is_int8": forward.precision.startswith("int8"),
        "data_files": data_files,
        "min_batch": forward.axes[BATCH].min,
        "example_len": interface.find_length(2 * interface.chunk_frames),
        "generates": generates,
        "extends": EXTEND in graphs,
        "grows": False,
    }
    if generates:
        context |= _describe_generation(graphs[DECODE], forward, interface.window)
    return context


def check_names(bundle: Bundle, kind: str, pattern: re.Pattern[str], names: Iterable[str]) -> None:
    """Check names of a bundle that a program is written with.

    Raises:
        BundleError: One does not match the pattern.
    """
    for name in names:
        if not pattern.fullmatch(name) or keyword.iskeyword(name):
            raise BundleError(
                f"{bundle.path} has a {kind} called {show(name)}, which no program is written with; wanted letters, "
                "digits and underscores; export it again"
            )


def list_data_files(bundle: Bundle, graphs: Mapping[str, GraphSpec]) -> tuple[str, ...]:
    """Return the names of the files beside graphs that their weights are in."""
    return tuple(sorted({name for graph in graphs.values() for name in list_external_files(bundle.path / graph.file)}))


def format_shape(spec: TensorSpec) -> str:
    """Return a shape as a tuple of sizes and names of axes.

    >>> from flash_export.interface import TensorSpec
    >>> format_shape(TensorSpec("logits", "float32", ("batch", "seq", 256)))
    '(batch, seq, 256)'
    """
    return f"({', '.join(map(str, spec.shape))})"


def _describe_generation(decode: GraphSpec, forward: GraphSpec, window: int) -> dict[str, Any]:
    longest, growing = forward.axes[SEQ].max, find_growing(decode)
    return {
        "window": window,
        "segment_len": round_segment(DEFAULT_SEGMENT_LEN, window, longest),
        "max_len": longest,
        "grows": bool(growing),
        "past_axis": min(growing.values(), default=0),
    }


def _describe_graphs(bundle: Bundle, graphs: dict[str, GraphSpec]) -> Iterator[GraphSection]:
    interface, weights_sha256 = bundle.manifest.interface, bundle.manifest.files[WEIGHTS_FILE]
    family = bundle.read_config()["model_type"]
    for name, graph in graphs.items():
        facts = describe_facts(name, graph, interface, family=family, weights_sha256=weights_sha256)
        outputs = [spec for spec in graph.outputs if not spec.name.startswith(NEW_STATE_PREFIX)]
        rows = _list_rows(graph.inputs, interface), _list_rows(outputs, interface)
        yield GraphSection(name, graph.file, facts, *rows)


def _list_rows(specs: Sequence[TensorSpec], interface: Interface) -> tuple[TensorRow, ...]:
    """Return rows in order; what every layer has, once."""
    layers: dict[TensorRow, list[int]] = {}
    for spec in specs:
        found, text = _LAYER.fullmatch(spec.name), describe_tensor(spec, interface)
        if found is None:
            layers[TensorRow(spec.name, spec.dtype, format_shape(spec), text)] = []
        else:
            row = TensorRow(f"{found[1]}N{found[3]}", spec.dtype, format_shape(spec), text)
            layers.setdefault(row, []).append(int(found[2]))
    return tuple(replace(row, text=f"{row.text}{_format_layers(known)}") for row, known in layers.items())


def _format_layers(layers: list[int]) -> str:
    """Say for which numbers N stands; nothing if there is none.

    >>> _format_layers([0, 1, 2]), _format_layers([])
    ('; N: 0 to 2', '')
    """
    return f"; N: {min(layers)} to {max(layers)}" if layers else ""
